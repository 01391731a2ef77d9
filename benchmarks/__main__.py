"""All measurements, one after the other, into results/benchmarks: what `make bench` does.

    python -m benchmarks [--only PART] [--repeats 3] [--data-dir DIR] [--out DIR]

Each part is a command of its own as well: python -m benchmarks.bench_PART --help. They take more
than an hour on two cores, which should have nothing else to do.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.processes import ROOT, exit_on_sigterm
from benchmarks.harness.report import RESULTS

# Which of the options each part takes.
_ON_ENGINES = ("repeats", "data_dir", "prefix")
PARTS: dict[str, tuple[str, ...]] = {
    "rounds": (*_ON_ENGINES, "pfl_python"),
    "parts": ("repeats", "data_dir"),
    "clients": _ON_ENGINES,
    "memory": ("repeats", "data_dir"),
    "aggregation": (),
    "transport": (),
    "fisher": (),
    "optimizer": (),
    "precision": (),
    "blocks": (),
    "startup": ("repeats",),
}


def commands(options: argparse.Namespace) -> list[list[str]]:
    """Return the command of every part that was asked for."""
    found = []
    for part in options.only or PARTS:
        command = ["-m", f"benchmarks.bench_{part}", "--json", str(options.out / f"{part}.json")]
        for name in PARTS[part]:
            if (value := getattr(options, name)) is not None:
                command.append(f"--{name.replace('_', '-')}={value}")
        found.append([sys.executable, *command])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--data-dir", help="where CIFAR-100 is, if it is (default ~/fedta/data)")
    parser.add_argument("--pfl-python", help="a Python that has pfl; default: make one")
    parser.add_argument("--prefix", help="a command before each contender, as 'taskset -c 0,1'")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default results/benchmarks")
    options = parser.parse_args(arguments)
    options.out = options.out.absolute()
    exit_on_sigterm()
    statuses = []
    for command in commands(options):
        print(f"\n== {command[2]}", flush=True)
        statuses.append(subprocess.run(command, cwd=ROOT).returncode)
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
