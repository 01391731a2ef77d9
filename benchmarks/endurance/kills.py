"""kill -9 at random moments of a run: the same command again has to end at the same weights.

    python -m benchmarks.endurance.kills [--kills 200] [--seed 0] [--json FILE]

A small run of SCAFFOLD with a ridge head and a calibrated mask is played without a break. Then it
is killed at random, again and again, until it gets to its end in spite of that; and played again
from the beginning until there were as many kills as asked for. Whatever was going on at that
moment, head, calibration, a round, a file half written, the weights have to be those of the first.
"""

import collections
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.endurance.trial import command, options
from benchmarks.harness.processes import ROOT
from benchmarks.harness.report import facts, write
from fedta_app.seeding import numpy_generator

KEYS = {
    "num-clients": 10, "fraction-train": 0.5, "num-server-rounds": 60, "local-steps": 2,
    "eval-every": 20, "eval-size": 100, "head": "ridge", "strategy": "scaffold",
    "calibration-rounds": 3, "calibration-examples": 20, "threads": 1,
}  # fmt: skip
_PATIENCE = 300.0  # seconds without a kill after which a run is stuck


def play(results: Path, name: str, kill_after: float | None) -> bool:
    """Give the command; kill its processes some seconds after its run began, unless it ends first.

    Returns
    -------
    bool
        Whether it came to its end.
    """
    process = subprocess.Popen(
        command(results, {**KEYS, "name": name}), cwd=ROOT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    while line := process.stdout.readline():
        said.append(line)
        if line.startswith("run directory:"):
            break
    try:
        process.communicate(timeout=_PATIENCE if kill_after is None else kill_after)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}: {''.join(said)}")
    return True


def place(run: Path) -> str:
    """Return the phase of the last row that was written, "none" before the first."""
    try:
        with (run / "metrics.csv").open() as stream:
            return [row["phase"] for row in csv.DictReader(stream)][-1]
    except (OSError, IndexError):
        return "none"


def sha256(run: Path) -> str:
    """Return that of the final weights."""
    summary = json.loads((run / "summary.json").read_text())
    return str(summary["final-weights-sha256"]) if summary["status"] == "finished" else "unfinished"


def main(arguments: list[str] | None = None) -> int:
    """Kill runs, print what became of them, and return 1 if one ended at other weights."""
    asked = options(__doc__, arguments, counted="kills", number=200)
    generator: np.random.Generator = numpy_generator("kills", asked.seed)
    places: collections.Counter[str] = collections.Counter()
    ends: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        results = Path(folder)
        began = time.perf_counter()
        play(results, "unbroken", None)
        length = time.perf_counter() - began
        expected = sha256(results / "unbroken/seed0")
        while places.total() < asked.kills:
            name = f"killed{len(ends)}"
            run = results / name / "seed0"
            # Mostly a small step forward, so that a run is killed many times.
            while not play(results, name, float(generator.exponential(length / 12))):
                places[place(run)] += 1
            ends.append(sha256(run))
            wrong = sum(end != expected for end in ends)
            print(f"{places.total()} kills, {len(ends)} runs, {wrong} at other weights", flush=True)
    print("the last row before a kill: " + ", ".join(f"{n} {p}" for p, n in places.most_common()))
    result = {"kills": places.total(), "after": dict(places), "runs": len(ends), "wrong": wrong}
    write(asked.json, {**facts(), **result})
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
