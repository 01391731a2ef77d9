"""What it costs that clients keep something: SCAFFOLD beside FedAvg, and its place on the disk.

    python -m benchmarks.bench_memory [--repeats 5] [--rounds 3] [--clients 10000]
                                      [--data-dir DIR] [--json FILE]

Time: ten clients of ViT-S/16's size at 32 px (86.7 MB of weights) train in every round, so that
each reads what it kept in the round before, and writes it anew. The runs, on the in-process engine
and in fresh processes, are FedAvg and SCAFFOLD, with all weights and with a random tenth; the
algorithms alternate. Disk: a small network, ten clients a round out of a hundred and out of many.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.contenders import Contender, Runner
from benchmarks.harness.jobs import Job, prepared, set_words
from benchmarks.harness.processes import exit_on_sigterm, run_apart
from benchmarks.harness.report import facts, write

CLIENTS = 10  # a round
STRATEGIES = ("fedavg", "scaffold")
MASK = {
    "head": "probe", "probe-rounds": 1, "mask-rule": "random", "sparsity": 0.9,
}  # fmt: skip
LARGE = {
    "image-size": 32, "batch-size": 8, "lr": 0.01, "num-clients": CLIENTS, "fraction-train": 1.0,
}  # fmt: skip
_ENGINE = Contender("in-process", "in-process")


def time_per_client(
    changes: dict[str, Any], data_dir: str, *, repeats: int, rounds: int
) -> dict[str, Any]:
    """Return seconds a round of both strategies, and what SCAFFOLD costs a client besides."""
    seconds: dict[str, list[float]] = {strategy: [] for strategy in STRATEGIES}
    preset = "fedavg-iid/c0.1"
    with (
        prepared(Job(preset, {**changes, "strategy": "fedavg"}), data_dir) as plain,
        prepared(Job(preset, {**changes, "strategy": "scaffold"}), data_dir) as keeping,
    ):
        for _ in range(repeats):
            for strategy, job in zip(STRATEGIES, (plain, keeping), strict=True):
                seconds[strategy].append(Runner(job).time(_ENGINE, rounds).median)
                print(f"  {strategy:<10} {seconds[strategy][-1]:8.3f} s/round", flush=True)
    pairs = zip(seconds["fedavg"], seconds["scaffold"], strict=True)
    found = [(after - before) / CLIENTS for before, after in pairs]
    return {"seconds": seconds, "a-client": statistics.median(found), "all": found}


def bytes_on_disk(num_clients: int, rounds: int, data_dir: str) -> dict[str, int]:
    """Return what clients keep after a run of SCAFFOLD, ten of them a round."""
    few_images = {"model": "cnn", "batch-size": 4, "lr": 0.01, "strategy": "scaffold"}
    share = {"num-clients": num_clients, "fraction-train": CLIENTS / num_clients}
    job = Job("small/fedavg-iid", {**few_images, **share}, threads=1)
    with (
        prepared(job, data_dir) as ready,
        tempfile.TemporaryDirectory(prefix="fedta-bench-") as folder,
    ):
        values = {**ready.config(density=1.0, actors=1, rounds=rounds), "results-dir": folder}
        run = ["run", "small/fedavg-iid", "--engine", "in-process", *set_words(values)]
        run_apart([sys.executable, "-m", "experiments", *run])
        (kept,) = Path(folder).glob("bench/seed*/clients")
        files = [path for path in kept.rglob("*") if path.is_file()]
        return {
            "clients": num_clients,
            "that-keep-something": len({path.parent for path in files}),
            "files": len(files),
            "bytes": sum(path.stat().st_size for path in files),
        }


def main(arguments: list[str] | None = None) -> None:
    """Print what both cost, and write everything to a file when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="that are timed, per run")
    parser.add_argument("--disk-rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--data-dir", default="~/fedta/data", help="where CIFAR-100 is, if it is")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args(arguments)
    exit_on_sigterm()
    report: dict[str, Any] = facts()
    for title, changes in (("all weights", LARGE), ("a random tenth", {**LARGE, **MASK})):
        print(title, flush=True)
        found = time_per_client(
            changes, options.data_dir, repeats=options.repeats, rounds=options.rounds
        )
        print(f"  SCAFFOLD costs {found['a-client']:.3f} s a client and round", flush=True)
        report[title] = found
    report["disk"] = []
    for number in (100, options.clients):
        found = bytes_on_disk(number, options.disk_rounds, options.data_dir)
        report["disk"].append(found)
        print("{clients} clients: {that-keep-something} keep {bytes:,} bytes".format(**found))
    write(options.json, report)


if __name__ == "__main__":
    main()
