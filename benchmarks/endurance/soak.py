"""A long run: memory and time per round have to stay what they were, and nothing stays behind.

    python -m benchmarks.endurance.soak [--engine in-process] [--rounds 1000] [--json FILE]

A small run of SCAFFOLD, whose clients keep something, with a mask and a checkpoint after every
round. Round 100 is compared with the end: the medians of a hundred rounds each.
"""

import argparse
import contextlib
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.endurance.trial import command
from benchmarks.harness.processes import ROOT, tree
from benchmarks.harness.report import facts, write
from experiments import load_run

WINDOW = 100  # rounds of a median
ALLOWED = 1.05  # of what it was in the first window
KEYS = {
    "num-clients": 20, "fraction-train": 0.25, "local-steps": 1, "eval-every": 50, "eval-size": 100,
    "probe-rounds": 2, "strategy": "scaffold", "calibration-rounds": 1, "threads": 1,
    "calibration-examples": 10, "name": "soak",
}  # fmt: skip


def growth(metrics: pd.DataFrame) -> dict[str, Any]:
    """Return the medians of the rounds before WINDOW twice, and of the last, and their ratios."""
    rounds = metrics[metrics["phase"] == "train"]
    found: dict[str, Any] = {}
    for column in ("seconds", "memory_mb", "client_memory_mb"):
        values = rounds[column].dropna().tolist()
        if values:
            first = statistics.median(values[WINDOW : 2 * WINDOW])
            last = statistics.median(values[-WINDOW:])
            found[column] = {"after-100": first, "end": last, "ratio": last / first}
    return found


def left_behind(shared_before: set[str], temporary: Path, run: Path) -> list[str]:
    """Return processes, shared memory and files that should have gone with the run."""
    with contextlib.suppress(ChildProcessError):  # those that have ended and wait to be collected
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    there = [pid for pid in tree(os.getpid()) if pid != os.getpid()]
    processes = [f"process {pid} ({_command(pid)})" for pid in there]
    shared = sorted(set(os.listdir("/dev/shm")) - shared_before)
    half = [str(path.relative_to(run)) for path in run.rglob(".*.tmp")]
    other = sorted(path.name for path in temporary.iterdir())
    return [*processes, *shared, *half, *other]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:80].strip()
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Run it, print the ratios and what is left; return 1 if something grew or stayed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("in-process", "flower"), default="in-process")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.rounds < 3 * WINDOW:
        parser.error(f"--rounds {options.rounds} is not allowed: it is at least {3 * WINDOW}")
    pr_set_child_subreaper = 36  # so that what the command leaves running is found below us
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        temporary, shared = folder / "tmp", set(os.listdir("/dev/shm"))
        temporary.mkdir()
        keys = {**KEYS, "num-server-rounds": options.rounds}
        subprocess.run(
            command(folder / "runs", keys, options.engine), cwd=ROOT, check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(temporary), "FLWR_HOME": str(folder / "flwr")},
        )  # fmt: skip
        run = folder / "runs/soak/seed0"
        found = growth(load_run(run).metrics)
        left = left_behind(shared, temporary, run)
    for column, values in found.items():
        print(f"{column:<18} {values['after-100']:9.3f} -> {values['end']:9.3f}  "
              f"x {values['ratio']:.3f}")  # fmt: skip
    print("left behind: " + (", ".join(left) or "nothing"))
    write(options.json, {**facts(), "growth": found, "left": left})
    return int(bool(left) or any(one["ratio"] > ALLOWED for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
