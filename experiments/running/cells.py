"""Cells of a table: a preset and a seed, and how far its run is."""

import csv
import fcntl
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.running.presets import Preset
from fedta_app.config import VOLATILE_KEYS, RunConfig, Value, read_toml
from fedta_app.errors import ConfigError
from fedta_app.masks import needs_scores
from fedta_app.runs.directory import run_path
from fedta_app.runs.metrics import COLUMNS

FINISHED, INTERRUPTED, FAILED, RUNNING, WAITING = (
    "finished", "interrupted", "failed", "running", "waiting",
)  # fmt: skip
OTHER = "another configuration"
_SEED_FOLDER = re.compile(r"seed\d+")  # not seed0.old-1

# A cell is what is computed: not where the files lie or what the run is called, and not on which
# device. Another device, number of threads or kernel changes the last bits of sums, which is noise
# of the kind that seeds measure, not another experiment: a table that was begun on a T4 and is
# planned on a laptop is the same table. Only going on with a run that is half done needs the same
# (fedta_app.runs.directory), because there a promise of equal bits is kept.
PLACE_KEYS = VOLATILE_KEYS | {
    "name", "device", "threads", "kernels", "compile", "deterministic"
}  # fmt: skip

# What only a federation reads, only a mask, and only a mask of scored weights.
_FEDERATED = {
    "partition", "num-clients", "fraction-train", "calibration-fraction", "mask-scope", "strategy",
    "coverage-exponent", "server-scale", "task-figures",
}  # fmt: skip
_SCORES = {
    "calibration-rounds", "calibration-fraction", "calibration-examples", "calibration-batch-size",
    "soft-value", "sensitivity-labels", "sensitivity-output",
}  # fmt: skip
_MASK = _SCORES | {"mask-scope", "sparsity", "sparsity-scope", "score-threshold"}


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    preset: Preset
    config: RunConfig

    @property
    def label(self) -> str:
        """What the runner calls it."""
        return f"{self.config.name} seed {self.config.seed}"

    @property
    def path(self) -> Path:
        """The run directory."""
        return run_path(self.config)

    @property
    def results(self) -> Path:
        """Where the run directories of all tables are."""
        return Path(self.config.results_dir).expanduser().absolute()


@dataclass(frozen=True)
class Progress:
    """How far a cell is: one of the states above, the rounds that are done, and why it failed."""

    state: str
    rows: tuple[dict[str, str], ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.state not in (INTERRUPTED, FAILED, RUNNING) or not self.rows:
            return self.state
        last = self.rows[-1]
        return f"{self.state} at {last['phase']} round {last['round']}"


def make_cells(presets: Sequence[Preset], overrides: Mapping[str, Any], seeds: int) -> list[Cell]:
    """Return each preset with `seeds` seeds, from the configured one up.

    Raises
    ------
    ConfigError
        When two of them would share a run directory, or would compute the same.
    """
    cells = []
    for preset in presets:
        keys = dict(overrides)
        if preset.values.get("engine") == "centralized":
            keys.pop("engine", None)
        first = preset.config(keys)
        cells += [
            Cell(preset, first.with_values(seed=first.seed + number)) for number in range(seeds)
        ]
    if len({cell.path for cell in cells}) < len(cells):
        raise ConfigError("two runs would share one run directory: leave name to the presets")
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(identity(cell.config), cell)
        if other is not cell:
            raise ConfigError(
                f"{other.config.name} and {cell.config.name} would be the same run: leave the keys "
                "in which they differ to the presets"
            )
    return cells


def deciding_keys(config: RunConfig) -> dict[str, Value]:
    """Return the keys that decide what a cell computes, with their values."""
    idle = _idle_keys(config) | PLACE_KEYS
    keys = {key: value for key, value in config.to_mapping().items() if key not in idle}
    keys["weights"] = Path(config.weights).name  # wherever the file lies
    # Another engine is another place; no federation at all is another experiment.
    return keys | {"centralized": config.engine == "centralized"}


def _idle_keys(config: RunConfig) -> set[str]:
    """Return the keys that nothing reads in this configuration, such as Nc of an iid partition."""
    idle: set[str] = set()
    central = config.engine == "centralized"
    if central:
        idle |= _FEDERATED
    if config.partition != "classes" or central:
        idle |= {"num-classes-per-client"}
    if config.partition != "dirichlet" or central:
        idle |= {"dirichlet-alpha"}
    if config.mask_rule == "none":
        idle |= _MASK
    elif not needs_scores(config.mask_rule):
        idle |= _SCORES
        if config.mask_scope in ("vote", "union", "intersection"):
            idle -= {"calibration-fraction"}  # of the clients, who draw masks of their own
    if config.head != "probe":
        idle |= {"probe-rounds", "probe-lr"}
    if config.head != "ridge":
        idle |= {"head-fraction", "ridge", "head-temperature"}
    if config.lr_schedule != "step":
        idle |= {"lr-step-rounds", "lr-step-factor"}
    if config.strategy != "masked-fedavg":
        idle |= {"coverage-exponent"}
    if config.strategy != "task-arithmetic":
        idle |= {"server-scale"}
    return idle


def identity(config: RunConfig) -> str:
    """Return the sha256 (hexadecimal) of the keys that decide what a cell computes."""
    return hashlib.sha256(json.dumps(deciding_keys(config), sort_keys=True).encode()).hexdigest()


def progress(config: RunConfig) -> Progress:
    """Read from its directory how far a run is; nothing in it is changed."""
    path = run_path(config)
    if not (path / "config.toml").exists():
        return Progress(RUNNING if _locked(path) else WAITING)
    if not _same(path / "config.toml", config):
        return Progress(OTHER)
    rows = read_rows(path)
    if _locked(path):
        return Progress(RUNNING, rows)
    summary = read_summary(path)
    if summary.get("status") == "finished":
        return Progress(FINISHED, rows)
    if summary.get("status") == "failed":
        return Progress(FAILED, rows, str(summary.get("reason")))
    return Progress(INTERRUPTED, rows)


class FinishedRuns:
    """The finished runs of a results directory by identity: two tables may share a cell."""

    def __init__(self, results: Path) -> None:
        self._paths = by_identity(reversed(finished_folders(results)))

    def path(self, config: RunConfig) -> Path | None:
        """Return the directory of a finished run of this configuration, its own before others."""
        if progress(config).state == FINISHED:
            return run_path(config)
        return self._paths.get(identity(config))


def by_identity(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the folders of runs, or of their records, by identity; the last of equal ones."""
    found = {}
    for folder in folders:
        with suppress(ConfigError):  # of another version
            found[identity(RunConfig.from_mapping(read_toml(folder / "config.toml")))] = folder
    return found


def finished_folders(results: Path) -> list[Path]:
    """Return the directories of all finished runs, without those that were moved aside."""
    found = (summary.parent for summary in sorted(results.glob("*/*/seed*/summary.json")))
    return [
        folder
        for folder in found
        if _SEED_FOLDER.fullmatch(folder.name) and read_summary(folder).get("status") == "finished"
    ]


def _same(stored: Path, config: RunConfig) -> bool:
    try:
        return identity(RunConfig.from_mapping(read_toml(stored))) == identity(config)
    except ConfigError:
        return False  # of another version, or damaged: the run itself says what is wrong


def read_rows(folder: Path) -> tuple[dict[str, str], ...]:
    """Return the rows of metrics.csv, none where it is missing or damaged."""
    try:
        with (folder / "metrics.csv").open() as stream:
            rows = tuple(csv.DictReader(stream))
        for row in rows:
            for name in COLUMNS:
                _ = row[name] if name == "phase" else float(row[name] or 0)
    except (OSError, ValueError, KeyError, TypeError):  # the last: a row that was cut off
        return ()
    return rows


def read_summary(folder: Path) -> dict[str, Any]:
    """Return summary.json, empty where it is missing or damaged."""
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return summary


def _locked(folder: Path) -> bool:
    """Tell whether a process works in the directory now."""
    try:
        with (folder / ".lock").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # nobody ever did, or a file system without locks
    return False
