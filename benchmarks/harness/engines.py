"""A contender on one of our engines, or on Flower's with its stock app: a process of its own.

    python -m benchmarks.harness.engines FOLDER

A round lasts from one row of metrics.csv to the next, by the file's own time: everything that a
user waits for, records included.
"""

import csv
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.peers.task import write_result
from experiments.running.flower import run_app, run_on_flower
from fedta_app.config import RunConfig
from fedta_app.runs.directory import run_path

STOCK_APP = Path(__file__).parents[1] / "peers" / "stock_flower"
_INTERVAL = 0.005  # seconds between two looks at the file


def run_engine(values: dict[str, Any], actors: int) -> list[float]:
    """Run a configuration on its engine; return when the first round began and each ended."""
    config = RunConfig.from_mapping(values)
    clock = RoundClock(run_path(config) / "metrics.csv")
    if config.engine == "in-process":
        from experiments.running.launch import (
            run_here,  # not above: Flower's own process would carry it
        )

        run_here(config)
    else:
        run_on_flower(config, client_cpus=cpus_per_actor(actors), client_gpus=0.0)
    return clock.stop()


def cpus_per_actor(actors: int) -> int:
    """Return how many CPUs a client takes, for that many to run side by side."""
    return max(1, (os.cpu_count() or 1) // actors)


def run_stock(folder: str, num_clients: int, actors: int) -> list[float]:
    """Run Flower's stock app; return when the first round began and each ended."""
    federation = (
        f"num-supernodes={num_clients} client-resources-num-cpus={cpus_per_actor(actors)} "
        "client-resources-num-gpus=0.0"
    )
    run_app(STOCK_APP, tomli_w.dumps({"folder": folder}), federation)
    stamps: list[float] = json.loads(Path(folder, "stamps.json").read_text())
    return stamps


class RoundClock:
    """Notes when rows of training appear in a metrics.csv."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: dict[int, float] = {}
        self._changed = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> list[float]:
        """Return when the row before the first round was written, and that of each round."""
        self._done.set()
        self._thread.join()
        self._look()
        return [self._stamps[count] for count in sorted(self._stamps)]

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        try:
            changed = self._path.stat().st_mtime_ns
            if changed == self._changed:
                return
            with self._path.open() as stream:
                count = sum(row["phase"] == "train" for row in csv.DictReader(stream))
        except FileNotFoundError:
            return
        self._changed = changed
        if count == 0 or count not in self._stamps:  # 0: the last row before the first round
            self._stamps[count] = changed / 1e9


def main(folder: str) -> None:
    """Do what the folder's `task.json` says."""
    asked = json.loads((Path(folder) / "task.json").read_text())
    if asked["kind"] == "stock":
        stamps = run_stock(folder, asked["task"]["num_clients"], asked["actors"])
    else:
        stamps = run_engine(asked["config"], asked["actors"])
    write_result(folder, stamps)


if __name__ == "__main__":
    main(sys.argv[1])
