"""Ten thousand clients beside a hundred, ten of them a round: what a larger federation costs.

    python -m benchmarks.bench_clients [--clients 10000] [--repeats 3] [--rounds 8]
                                       [--data-dir DIR] [--json FILE]

The same small network, images and steps (4 of batch 4: ten thousand clients have 4 or 5 images of
CIFAR-100 each), on both engines, each run in fresh processes, in pairs. The start, where Flower's
engine asks every node for its partition, is apart. Server memory is that of the process in
which the ServerApp runs; it was looked at in runs of their own.
"""

import argparse
import shlex
import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness.contenders import Contender, Runner
from benchmarks.harness.jobs import Job, prepared
from benchmarks.harness.processes import exit_on_sigterm
from benchmarks.harness.report import facts, write

FEW, PER_ROUND = 100, 10
ENGINES = (Contender("in-process", "in-process"), Contender("flower, 1 actor", "flower"))


def job_of(num_clients: int) -> Job:
    """Return the job for a federation of this size."""
    changes: dict[str, Any] = {
        "model": "cnn",
        "num-clients": num_clients,
        "fraction-train": PER_ROUND / num_clients,
        "batch-size": 4,
        "lr": 0.01,
    }
    return Job("small/fedavg-iid", changes, threads=1)


def measure(
    few: Runner, many: Runner, engine: Contender, *, repeats: int, rounds: int
) -> dict[str, Any]:
    """Return what `many` clients cost by what `few` do: seconds per round, start and memory."""
    runs = [(few.time(engine, rounds), many.time(engine, rounds)) for _ in range(repeats)]
    peaks = few.watch(engine), many.watch(engine)
    return {
        "seconds": [statistics.median(run[of].median for run in runs) for of in (0, 1)],
        "ratio": statistics.median(after.median / before.median for before, after in runs),
        "startup": [statistics.median(run[of].startup for run in runs) for of in (0, 1)],
        "server-mib": [round(peak.server) for peak in peaks],
        "server-ratio": peaks[1].server / peaks[0].server,
        "total-mib": [round(peak.total) for peak in peaks],
    }


def show(engine: str, row: dict[str, Any]) -> None:
    """Print the lines of an engine."""
    print(f"  {engine}")
    for title, key in (
        ("s/round", "seconds"),
        ("start, s", "startup"),
        ("server, MiB", "server-mib"),
        ("all processes, MiB", "total-mib"),
    ):
        before, after = row[key]
        print(f"    {title:<20} {before:9.3f} {after:9.3f}  {after / before:6.2f} x", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Print a table, and write everything to a file when asked."""
    options = _parser().parse_args(arguments)
    exit_on_sigterm()
    prefix = shlex.split(options.prefix)
    chosen = [engine for engine in ENGINES if engine.name in (options.only or [engine.name])]
    report: dict[str, Any] = {**facts(), "clients": [FEW, options.clients], "engines": {}}
    print(f"{FEW} and {options.clients} clients, {PER_ROUND} a round, {options.repeats} repeats")
    with (
        prepared(job_of(FEW), options.data_dir) as few,
        prepared(job_of(options.clients), options.data_dir) as many,
    ):
        report["dataset"] = few.places["dataset"]
        for engine in chosen:
            report["engines"][engine.name] = measure(
                Runner(few, prefix=prefix),
                Runner(many, prefix=prefix),
                engine,
                repeats=options.repeats,
                rounds=options.rounds,
            )
            show(engine.name, report["engines"][engine.name])
            write(options.json, report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8, help="that are timed, per run")
    names = [engine.name for engine in ENGINES]
    parser.add_argument("--only", choices=names, action="append", metavar="NAME")
    parser.add_argument("--data-dir", default="~/fedta/data", help="where CIFAR-100 is, if it is")
    parser.add_argument("--prefix", default="", help="a command before each, as 'taskset -c 0,1'")
    parser.add_argument("--json", type=Path, help="also write the result here")
    return parser


if __name__ == "__main__":
    main()
