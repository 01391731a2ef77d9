"""Where a round goes: `python -m benchmarks.bench_parts` (`table`), and the clock that it uses."""
