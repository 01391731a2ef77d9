"""What the benchmarks share: contenders and their jobs, processes that are measured, reports."""
