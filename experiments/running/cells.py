"""The cells of a table (a preset with a seed), and how far the run of each is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.running.presets import Preset
from fedta_app.config import RunConfig, without_folders
from fedta_app.entry import Value
from fedta_app.errors import ConfigError
from fedta_app.files import as_folder, expanded, file_sha256, read_toml
from fedta_app.hashed_files import json_sha256
from fedta_app.runs.directory import LOCK_FILE, START_LOCK, cache_path, results_path, run_path
from fedta_app.runs.records import read_rows, read_summary

SEED_FOLDER = re.compile(r"seed\d+")  # not seed0.old-1


class State(StrEnum):
    """How far the run of a cell is."""

    WAITING = "waiting"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"
    OTHER = "another configuration"  # the directory holds a run of another experiment


@dataclass(frozen=True)
class Cell:
    """One run of a table."""

    preset: Preset
    config: RunConfig

    @property
    def label(self) -> str:
        """The name of the cell in messages."""
        return f"{self.config.name} seed {self.config.seed}"

    @property
    def own_name(self) -> bool:
        """Whether its run is named after the preset, and not by the user."""
        return self.config.name == self.preset.label

    @property
    def path(self) -> Path:
        """The run directory."""
        return run_path(self.config)

    @property
    def results(self) -> Path:
        """The folder that holds the run directories of all tables."""
        return results_path(self.config)


@dataclass(frozen=True)
class Progress:
    """How far a cell is: its state, the rows of the rounds that are done, and why it failed."""

    state: State
    rows: tuple[dict[str, str], ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        underway = (State.INTERRUPTED, State.FAILED, State.RUNNING)
        if self.state not in underway or not self.rows:
            return self.state
        last = self.rows[-1]
        return f"{self.state} at {last['phase']} round {last['round']}"


def make_cells(
    presets: Sequence[Preset], overrides: Mapping[str, Any], seeds: int, name: str | None = None
) -> list[Cell]:
    """Return a cell for each preset and each of `seeds` seeds, from the configured seed up.

    Parameters
    ----------
    name : str, optional
        Of the runs in place of the preset's label; with several presets, its first part.

    Raises
    ------
    ConfigError
        When two cells would share a run directory, or would compute the same.
    """
    cells = []
    for preset in presets:
        keys = dict(overrides)
        if preset.values.get("engine") == "centralized":
            keys.pop("engine", None)
        if name is not None:
            keys["name"] = f"{name}/{preset.name}" if len(presets) > 1 else name
        first = in_any_folder(preset.config(keys))
        cells += [
            Cell(preset, first.with_values(seed=first.seed + number)) for number in range(seeds)
        ]
    if len({cell.path for cell in cells}) < len(cells):
        raise ConfigError(
            "two runs would share one run directory: in place of the key name, --name NAME gives "
            "every preset a folder of its own in NAME"
        )
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(identity(cell.config), cell)
        if other is not cell:
            raise ConfigError(
                f"{other.config.name} and {cell.config.name} would be the same run: leave the keys "
                "in which they differ to the presets"
            )
    return cells


def in_any_folder(config: RunConfig) -> RunConfig:
    """Return the configuration with absolute paths: the processes of a run work elsewhere.

    Raises
    ------
    ConfigError
        When there is something else in the place of a folder.
    """
    weights, results_dir, data_dir = config.weights, config.results_dir, config.data_dir
    if weights not in ("pretrained", "random"):
        weights = str(expanded(weights, f"weights = {weights!r}"))
    return config.with_values(
        weights=weights,
        cache_dir=str(cache_path(config) or ""),
        results_dir=str(as_folder(results_dir, f"results-dir = {results_dir!r}")),
        data_dir=str(as_folder(data_dir, f"data-dir = {data_dir!r}")),
    )


def deciding_keys(config: RunConfig) -> dict[str, Value]:
    """Return the keys that decide what a cell computes, with their values.

    Paths, the name of the run and the device are not among them. Another device, number of threads
    or kernel changes the last bits of sums, which is noise of the kind that seeds measure: a table
    begun on one machine can be continued on another. (Resuming an unfinished run requires more
    keys to be equal: see `fedta_app.runs.directory`.)
    """
    keys = without_folders(config.values_that_decide("result"))
    # in-process and flower compute the same; centralized is another experiment.
    return keys | {"centralized": config.engine == "centralized"}


def identity(config: RunConfig) -> str:
    """Return the sha256 (hexadecimal) of the keys that decide what a cell computes."""
    return json_sha256(deciding_keys(config))


def differing_keys(config: RunConfig, other: RunConfig) -> dict[str, Value | None]:
    """Return the keys that decide what is computed and in which another run differs.

    The values are those of the other run, None where nothing reads the key there.
    """
    wanted, found = deciding_keys(config), deciding_keys(other)
    keys = sorted(wanted.keys() | found.keys())
    return {key: found.get(key) for key in keys if found.get(key) != wanted.get(key)}


def other_weights(config: RunConfig, summary: Mapping[str, Any]) -> str:
    """Return that a run has other weights than a file that is there now; empty if it has not.

    Its identity knows a file by its name alone, wherever that lies.
    """
    ran = (summary.get("identity") or {}).get("weights-file-sha256")
    path = Path(config.weights).expanduser()
    if config.weights in ("pretrained", "random") or not ran or not path.is_file():
        return ""
    stat = path.stat()
    now = _sha256(path, stat.st_mtime_ns, stat.st_size)
    if now == ran:
        return ""
    return f"was run with other weights than {path} holds (sha256 {ran[:12]}, and {now[:12]} now)"


@lru_cache
def _sha256(path: Path, _changed: int, _size: int) -> str:
    return file_sha256(path)


def progress(config: RunConfig) -> Progress:
    """Return how far a run is, according to its directory, which is not changed."""
    path = run_path(config)
    if not (path / "config.toml").exists():
        return Progress(State.RUNNING if _locked(path) else State.WAITING)
    if _identity_of(path) != identity(config):
        return Progress(State.OTHER)
    rows = read_rows(path)
    if _locked(path):
        return Progress(State.RUNNING, rows)
    summary = read_summary(path)
    if summary.get("status") == "finished":
        return Progress(State.FINISHED, rows)
    if summary.get("status") == "failed":
        return Progress(State.FAILED, rows, str(summary.get("reason")))
    return Progress(State.INTERRUPTED, rows)


class FinishedRuns:
    """The finished runs of a results directory by identity, since tables may share cells."""

    def __init__(self, results: Path) -> None:
        self._paths: dict[str, list[Path]] = {}
        for folder in finished_folders(results):
            if found := _identity_of(folder):
                self._paths.setdefault(found, []).append(folder)

    def path(self, cell: Cell) -> Path | None:
        """Return the directory of a finished run that computed the same, preferably its own.

        One of another table counts only if it had the weights that the cell's file holds now. A
        run that the user named is looked for under that name only: who names it wants it there.
        """
        if progress(cell.config).state is State.FINISHED:
            return cell.path
        others = self._paths.get(identity(cell.config), ()) if cell.own_name else ()
        right = (path for path in others if not other_weights(cell.config, read_summary(path)))
        return next(right, None)


def by_identity(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the folders of runs, or of their records, by identity; of equal ones, the last."""
    return {found: folder for folder in folders if (found := _identity_of(folder))}


def _identity_of(folder: Path) -> str | None:
    config = read_config(folder)
    return identity(config) if config else None


def read_config(folder: Path) -> RunConfig | None:
    """Return the configuration of a run, None if it is missing or this release cannot read it."""
    with suppress(ConfigError):
        return RunConfig.from_mapping(read_toml(folder / "config.toml"))
    return None


def finished_folders(results: Path) -> list[Path]:
    """Return the directories of all finished runs, except those that were moved aside."""
    return [
        folder
        for folder in run_folders(results)
        if read_summary(folder).get("status") == "finished"
    ]


def run_folders(folder: Path, depth: int = 3) -> list[Path]:
    """Return the run directories below a folder, sorted; a name has at most `depth` parts."""
    found = []
    for entry in sorted(entry for entry in _entries(folder) if entry.is_dir()):
        if SEED_FOLDER.fullmatch(entry.name):
            if (entry / "config.toml").exists():
                found.append(entry)
        elif depth and not entry.name.startswith((".", "seed")):  # seed0.old-1
            found += run_folders(entry, depth - 1)
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # missing, or not ours
        return []


def _locked(folder: Path) -> bool:
    """Return whether a process runs what is in the directory, or is about to."""
    try:
        for lock in (folder / LOCK_FILE, folder / START_LOCK):
            if lock.exists():
                with FileLock(lock, blocking=False, fallback_to_soft=False):
                    pass
    except Timeout:
        return True
    except OSError:
        return False  # a file system without locks
    return False
