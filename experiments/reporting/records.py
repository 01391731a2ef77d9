"""What is kept of a finished cell, small enough to commit: `<table>/cells/<preset>/seed<k>/`.

config.toml      the keys that decide what is computed; no paths of the machine it ran on
metrics.csv      as the run wrote it
summary.json     likewise, without paths, and with what `experiments.reporting.collect` checked
mask.bits        which of a fixed sample of the weights the mask trains, one bit each
classes.csv      clients x classes, for the first seed
scaling.csv, negation.csv, interference.csv    where the run saved them

summary.json ends with a sha256 of itself, and has one of every other file; records of earlier
releases have neither.
"""

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments import RESULTS
from experiments.running.cells import by_identity, finished_folders
from experiments.running.presets import Preset, Table
from fedta_app.config import RunConfig
from fedta_app.files import read_toml
from fedta_app.runs.records import METRICS, SUMMARY, read_rows, read_summary

CELLS = "cells"
MASK_FILE = "mask.bits"
CLASSES_FILE = "classes.csv"
MATRICES = ("cosine", "sign-conflict")  # of the clients' task vectors in the last round
TASK_FIGURES = (*MATRICES, "best-scale", "forgotten")
POINTS = ("scaling", "negation", "interference")  # CSV files that fedta_app.analysis makes
FILES = (METRICS, "config.toml", MASK_FILE, CLASSES_FILE, *(f"{name}.csv" for name in POINTS))


_NEEDED = ("name", "seed", "final", "identity", "weights", "sessions", "bytes-up", "bytes-down")


class RecordError(ValueError):
    """Results that cannot be reported; the message is one sentence."""


Group = dict[str, dict[str, list["Record"]]]  # what a figure draws: panel, line, seeds


@dataclass(frozen=True)
class Record:
    """A finished cell as it is kept."""

    preset: Preset
    seed: int
    config: RunConfig
    summary: dict[str, Any]
    rows: tuple[dict[str, str], ...]
    folder: Path

    @property
    def label(self) -> str:
        """The name of the cell in messages."""
        return f"{self.preset.label} seed {self.seed}"

    def final(self, figure: str) -> float:
        """Return a figure of the last round, such as `test_accuracy`."""
        value = self.summary["final"][figure]
        if value is None:
            raise RecordError(f"{self.folder} has no {figure} in its last round")
        return float(value)

    @property
    def start_accuracy(self) -> float | None:
        """Validation accuracy before training."""
        start = [row["val_accuracy"] for row in self.rows if row["phase"] == "start"]
        return float(start[0]) if start and start[0] else None

    @property
    def trajectory(self) -> dict[str, float]:
        """Validation accuracy where training was measured: its lowest, its mean, and at the end."""
        curve = [accuracy for number, _, accuracy in self.curve() if number > 0]
        if not curve:
            return {}
        return {"lowest": min(curve), "mean": sum(curve) / len(curve), "end": curve[-1]}

    @property
    def megabytes(self) -> float:
        """Megabytes that went up and down, head and calibration included."""
        return float(self.summary["bytes-up"] + self.summary["bytes-down"]) / 1e6

    @property
    def density(self) -> float | None:
        """Trained share of the maskable weights, None without one mask for everybody."""
        density: float | None = (self.summary.get("mask") or {}).get("density")
        return density

    @property
    def failed_replies(self) -> int:
        """Number of replies that failed, in all rounds."""
        return sum(int(row["clients_failed"]) for row in self.rows)

    def task_figure(self, name: str) -> float | None:
        """Return one of `TASK_FIGURES` where it is known: of `MATRICES` the mean over pairs."""
        value = self.summary.get("task-vectors", {}).get(name)
        return None if value is None else float(value)

    @property
    def minutes(self) -> float:
        """Wall time of all sessions of the run."""
        return float(sum(session["seconds"] for session in self.summary["sessions"])) / 60

    def curve(self, column: str = "val_accuracy") -> list[tuple[int, float, float]]:
        """Return round, megabytes so far and a column of metrics.csv, wherever it was measured."""
        points, moved = [], 0
        for row in self.rows:
            moved += int(row["bytes_up"]) + int(row["bytes_down"])
            # Records of earlier releases lack some columns.
            if row.get(column) and row["phase"] in ("start", "train"):
                points.append((int(row["round"]), moved / 1e6, float(row[column])))
        return points

    def points(self, name: str) -> pd.DataFrame | None:
        """Return the rows of one of `POINTS`, where the run saved them."""
        path = self.folder / f"{name}.csv"
        return pd.read_csv(path) if path.exists() else None

    @cached_property
    def mask(self) -> npt.NDArray[np.bool_] | None:
        """Which weights of the sample are trained, None without a mask."""
        path = self.folder / MASK_FILE
        if not path.exists():
            return None
        size = int(self.summary["mask-sample"]["entries"])
        return np.unpackbits(np.frombuffer(path.read_bytes(), np.uint8), count=size).astype(bool)

    @cached_property
    def classes(self) -> npt.NDArray[np.int64] | None:
        """Images of each class that each client holds, None where they are not kept."""
        path = self.folder / CLASSES_FILE
        return np.loadtxt(path, dtype=np.int64, delimiter=",", ndmin=2) if path.exists() else None


def read_records(table: Table, results: Path) -> list[Record]:
    """Return the kept cells of a table, in the order of its presets, then seeds.

    Raises
    ------
    RecordError
        When there are none, or one belongs to no preset or is damaged.
    """
    folder = results / table.label / CELLS
    presets = {preset.name: preset for preset in table.presets}
    order = {name: number for number, name in enumerate(presets)}
    records = []
    for summary in folder.glob("*/seed*/summary.json"):
        name = summary.parent.parent.name
        if name not in presets:
            raise RecordError(f"{summary.parent} belongs to no preset of table {table.name!r}")
        records.append(_read(summary.parent, presets[name]))
    if not records:
        raise RecordError(_no_records(table, results))
    return sorted(records, key=lambda record: (order[record.preset.name], record.seed))


def _no_records(table: Table, results: Path) -> str:
    """Return which folder holds no records, which runs there are, and what makes records."""
    runs = Path(RunConfig().results_dir).expanduser()
    finished = len(
        [f for f in finished_folders(runs) if f.relative_to(runs).parts[0] == table.label]
    )
    options = f" --scale {table.scale.name}" if table.scale else ""
    out = "" if results.absolute() == RESULTS else f" --out {shlex.quote(str(results))}"
    collect = f"python -m experiments collect {table.name}{options}"
    number = f"{finished} finished run{'s' * (finished != 1)}" if finished else "no finished run"
    first = "" if finished else f"python -m experiments run {table.name}{options}, then "
    return (
        f"{(results / table.label / CELLS).absolute()} holds no cells; {runs} holds {number} of "
        f"{table.label} (--results-dir of run and collect names another folder): {first}"
        f"{collect}{out}"
    )


def record_sha256(path: Path) -> str:
    """Return the sha256 of a file of a record, whatever git made of its line ends."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _check_whole(folder: Path, summary: dict[str, Any], rows: Sequence[Any]) -> None:
    """Raise RecordError if a file of a record is damaged, or was edited."""
    if summary.get("status") != "finished" or not rows:
        raise RecordError(f"{folder} is not the record of a finished cell, or is damaged")
    if lacking := [name for name in _NEEDED if name not in summary]:
        raise RecordError(f"{folder / SUMMARY} is damaged: it lacks {lacking[0]!r}")
    for name, sha256 in summary.get("files", {}).items():
        path = folder / name
        if not path.is_file() or record_sha256(path) != sha256:
            raise RecordError(f"{path} is not what `collect` wrote: collect the cell again")


def _read(folder: Path, preset: Preset) -> Record:
    summary, rows = read_summary(folder), read_rows(folder)
    _check_whole(folder, summary, rows)
    config = RunConfig.from_mapping(read_toml(folder / "config.toml"))
    if config.seed != summary["seed"] or folder.name != f"seed{config.seed}":
        raise RecordError(f"{folder} holds the record of another seed")
    if summary["name"] != preset.label:
        # A result filed under the wrong setting is worse than none.
        raise RecordError(f"{folder} holds the record of {summary['name']}")
    return Record(preset, config.seed, config, summary, rows, folder)


def kept_cells(results: Path) -> set[str]:
    """Return the identities of all cells that have a record, whatever their table."""
    summaries = results.glob(f"*/{CELLS}/*/seed*/summary.json")
    return set(by_identity(summary.parent for summary in summaries))


def partition_name(config: RunConfig) -> str:
    """Return what a figure calls the partition of a configuration."""
    if config.partition == "classes":
        number = config.num_classes_per_client
        return f"{number} class{'es' * (number > 1)} per client"
    if config.partition == "dirichlet":
        return f"Dirichlet({config.dirichlet_alpha:g})"
    return config.partition


def by_preset(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each preset, in their order."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.preset.name, []).append(record)
    return groups
