"""How long the command line takes to answer before it computes anything.

    python -m benchmarks.bench_startup [--json FILE] [--repeats 5]

Each command runs in a process of its own, as a user starts it. The first start, which reads the
files from disk and compiles them, is not counted.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from benchmarks.harness.processes import run_apart
from benchmarks.harness.report import facts, write

COMMANDS = (["--help"], ["run", "--help"], ["list"])


def seconds(arguments: list[str]) -> float:
    """Return the wall time of one call of `fedta`."""
    began = time.perf_counter()
    run_apart([sys.executable, "-m", "experiments", *arguments])
    return time.perf_counter() - began


def main(arguments: list[str] | None = None) -> None:
    """Print the median of each command, and write the JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    rows = []
    for command in COMMANDS:
        seconds(command)
        times = [seconds(command) for _ in range(options.repeats)]
        rows.append({"command": " ".join(["fedta", *command]), "seconds": times})
        print(f"{rows[-1]['command']:<18} {statistics.median(times):6.2f} s", flush=True)
    write(options.json, {**facts(), "rows": rows})


if __name__ == "__main__":
    main()
