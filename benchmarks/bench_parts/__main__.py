"""`python -m benchmarks.bench_parts`: see `benchmarks.bench_parts.table`."""

from benchmarks.bench_parts.table import main

if __name__ == "__main__":
    main()
