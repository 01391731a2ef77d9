"""How long a cell will take, from the parts that `experiments.running.timing` measures.

If a cell of the same kind has finished on the same kind of device, its time is used instead.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.running.cells import Progress, State, finished_folders
from experiments.running.timing import Parts, measure_parts
from fedta_app.analysis.interference import images_of_matrix
from fedta_app.analysis.task_arithmetic import images_measured
from fedta_app.config import RunConfig
from fedta_app.device.cuda import resolve_device
from fedta_app.errors import ConfigError
from fedta_app.files import read_toml
from fedta_app.masks import needs_scores
from fedta_app.progress import phase
from fedta_app.runs.provenance import device_name
from fedta_app.runs.records import read_rows, read_summary

_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Estimate:
    """The seconds of a cell by phase, and the source of the estimate."""

    head: float
    calibrate: float
    start: float
    train: float
    source: str

    @property
    def total(self) -> float:
        """Seconds of the whole cell."""
        return self.head + self.calibrate + self.start + self.train

    def left(self, done: Progress, rounds: int) -> float:
        """Return the remaining seconds of a cell that has made this progress."""
        if done.state is State.FINISHED:
            return 0.0
        phases = {row["phase"] for row in done.rows}
        trained = sum(row["phase"] == "train" for row in done.rows)
        left = self.train * (1 - trained / rounds)
        if not phases & {"start", "train"}:
            left += self.start + self.calibrate
            left += 0.0 if "calibrate" in phases else self.head
        return left


class Forecast:
    """Estimates for the cells of a table; each kind of cell is measured once.

    Parameters
    ----------
    results : Path
        Where finished cells are looked for.
    report : callable
        Called with a line of text before each measurement.
    """

    def __init__(self, results: Path, report: Callable[[str], None]) -> None:
        self._report = report
        self._parts: dict[str, Parts] = {}
        self._finished: dict[tuple[str, str], list[Estimate]] = {}  # by kind of cell, and device
        for folder in finished_folders(results):
            with suppress(ConfigError):  # of another version
                config = RunConfig.from_mapping(read_toml(folder / "config.toml"))
                key = (_kind(config, "time", "count"), read_summary(folder)["device"])
                self._finished.setdefault(key, []).append(_taken(folder))

    def of(self, config: RunConfig) -> Estimate:
        """Return the estimate for a cell."""
        key = (_kind(config, "time", "count"), _device_name(config))
        if known := self._finished.get(key):
            return sorted(known, key=lambda estimate: estimate.total)[len(known) // 2]
        kind = _kind(config, "time")
        if kind not in self._parts:
            what = f"measuring a round like those of {config.name}"
            self._report(what)
            with phase(what):
                self._parts[kind] = measure_parts(config)
        return count_up(config, self._parts[kind])


def _taken(folder: Path) -> Estimate:
    """Return the seconds that a finished run took."""
    spent = dict.fromkeys(("head", "calibrate"), 0.0)
    for row in read_rows(folder):
        if row["phase"] in spent:
            spent[row["phase"]] += float(row["seconds"])
    total = sum(session["seconds"] for session in read_summary(folder)["sessions"])
    return Estimate(**spent, start=0.0, train=total - sum(spent.values()), source="finished cells")


def _kind(config: RunConfig, *words: str) -> str:
    """Return the values, as JSON, of the keys that decide these aspects (`fedta_app.entry`)."""
    return json.dumps(config.values_that_decide(*words))


def _device_name(config: RunConfig) -> str:
    torch.set_num_threads(config.threads or _THREADS)  # it is part of the name
    return device_name(resolve_device(config.device))


def count_up(config: RunConfig, parts: Parts) -> Estimate:
    """Return the estimate for a whole cell, from the seconds of its parts."""
    training, validation, test = parts.images
    cut = config.eval_size or validation + test
    val_images, test_images = min(cut, validation), min(cut, test)
    evaluations = -(-config.num_server_rounds // config.eval_every)
    tests = {"always": evaluations + 1, "end": 1, "never": 0}[config.measure_test]
    evaluating = parts.evaluation_image * (evaluations * val_images + tests * test_images)
    clients = max(1, round(config.fraction_train * config.num_clients))
    if config.task_figures and config.engine != "centralized":
        evaluating += parts.evaluation_image * images_measured(val_images, clients)
    head = 0.0
    if config.head == "probe":
        head = config.probe_rounds * (parts.probe_round + parts.row)
    elif config.head == "ridge":
        head = parts.feature_image * (config.head_fraction * training + validation)
    train = config.num_server_rounds * (parts.round + parts.row) + evaluating
    if config.head_refresh and config.engine != "centralized":
        asked = config.fraction_train if config.head_refresh_clients == "sampled" else 1.0
        images = asked * config.head_fraction * training + validation
        train += config.num_server_rounds // config.head_refresh * parts.feature_image * images
    if config.interference_every and config.engine != "centralized":
        losses = images_of_matrix(clients, training / config.num_clients)
        measured = parts.evaluation_image * (losses + val_images)
        if config.head == "ridge":  # solved afresh, to be compared
            measured += parts.evaluation_image * val_images
            measured += parts.feature_image * (config.head_fraction * training + validation)
        train += -(-config.num_server_rounds // config.interference_every) * measured
    start = parts.setup + parts.evaluation_image * val_images
    return Estimate(head, _calibration(config, parts), start, train, "a measured round")


def _calibration(config: RunConfig, parts: Parts) -> float:
    """Return the seconds of all calibration rounds: scoring images and making masks."""
    if config.mask_rule == "none":
        return 0.0
    training, validation, _ = parts.images
    if config.engine == "centralized":
        owners, images = 1, training
    elif config.mask_scope == "server":
        owners, images = 1, validation
    else:
        fraction = 1.0 if config.mask_scope == "client" else config.calibration_fraction
        owners = max(1, round(fraction * config.num_clients))
        images = training // config.num_clients
    own = config.mask_scope not in ("global", "server")
    if not needs_scores(config.mask_rule):
        return parts.mask * (owners if own else 1)
    images = min(images, config.calibration_examples or images)
    scored = parts.score_image * owners * images
    return config.calibration_rounds * (scored + parts.mask * (owners if own else 1))
