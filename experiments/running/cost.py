"""What a cell will take, counted up from parts that `experiments.running.probe` measures.

Where a cell of the same kind has finished on this kind of device, what it took is taken instead.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.running.cells import (
    FINISHED,
    PLACE_KEYS,
    Progress,
    finished_folders,
    read_rows,
    read_summary,
)
from experiments.running.probe import Parts, measure_parts
from fedta_app.analysis.task_arithmetic import images_measured
from fedta_app.config import RunConfig, read_toml
from fedta_app.errors import ConfigError
from fedta_app.masks import needs_scores
from fedta_app.runs.provenance import device_name
from fedta_app.training.workspace import resolve_device

# Two cells that differ in these take the same time.
_TIMELESS = (PLACE_KEYS - {"engine", "checkpoint-every"}) | {
    "seed", "partition", "num-classes-per-client", "dirichlet-alpha", "lr", "lr-schedule",
    "warmup-rounds", "lr-step-rounds", "lr-step-factor", "probe-lr", "ridge", "head-temperature",
    "soft-value", "coverage-exponent", "server-scale", "weights",
}  # fmt: skip
# Two that differ in these take the same time for a round, an image and a row.
_COUNTED = {
    "num-server-rounds", "eval-every", "eval-size", "measure-test", "calibration-rounds",
    "calibration-fraction", "calibration-examples", "probe-rounds", "checkpoint-every", "sparsity",
    "head-fraction",
}  # fmt: skip
_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Estimate:
    """Seconds of a cell from its start, by phase, and how they are known."""

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
        """Return the seconds that are left after the rows of an earlier attempt."""
        if done.state == FINISHED:
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
        Receives a line when something is about to be measured.
    """

    def __init__(self, results: Path, report: Callable[[str], None]) -> None:
        self._report = report
        self._parts: dict[str, Parts] = {}
        self._finished: dict[str, list[tuple[str, Estimate]]] = {}
        for folder in finished_folders(results):
            self._remember(folder)

    def _remember(self, folder: Path) -> None:
        summary = read_summary(folder)
        try:
            config = RunConfig.from_mapping(read_toml(folder / "config.toml"))
        except ConfigError:
            return
        spent: dict[str, float] = {}
        for row in read_rows(folder):
            spent[row["phase"]] = spent.get(row["phase"], 0.0) + float(row["seconds"])
        total = sum(session["seconds"] for session in summary["sessions"])
        head, calibrate = spent.get("head", 0.0), spent.get("calibrate", 0.0)
        estimate = Estimate(head, calibrate, 0.0, total - head - calibrate, "finished cells")
        device = summary["device"]
        self._finished.setdefault(_key(config, _TIMELESS), []).append((device, estimate))

    def of(self, config: RunConfig) -> Estimate:
        """Return what a cell takes."""
        device = _device_name(config)
        known = [
            estimate
            for name, estimate in self._finished.get(_key(config, _TIMELESS), [])
            if name == device
        ]
        if known:
            return sorted(known, key=lambda estimate: estimate.total)[len(known) // 2]
        key = _key(config, _TIMELESS | _COUNTED)
        if key not in self._parts:
            self._report(f"measuring a round like those of {config.name}")
            self._parts[key] = measure_parts(config)
        return count_up(config, self._parts[key])


def _key(config: RunConfig, without: frozenset[str] | set[str]) -> str:
    keys = {key: value for key, value in config.to_mapping().items() if key not in without}
    return json.dumps(keys, sort_keys=True)


def _device_name(config: RunConfig) -> str:
    torch.set_num_threads(config.threads or _THREADS)  # it is part of the name
    return device_name(resolve_device(config.device))


def count_up(config: RunConfig, parts: Parts) -> Estimate:
    """Return what a cell takes in all, from its parts."""
    training, validation, test = parts.images
    cut = config.eval_size or validation + test
    val_images, test_images = min(cut, validation), min(cut, test)
    evaluations = -(-config.num_server_rounds // config.eval_every)
    tests = {"always": evaluations + 1, "end": 1, "never": 0}[config.measure_test]
    evaluating = parts.evaluation_image * (evaluations * val_images + tests * test_images)
    if config.task_figures and config.engine != "centralized":
        clients = max(1, round(config.fraction_train * config.num_clients))
        evaluating += parts.evaluation_image * images_measured(val_images, clients)
    head = 0.0
    if config.head == "probe":
        head = config.probe_rounds * (parts.probe_round + parts.row)
    elif config.head == "ridge":
        head = parts.feature_image * (config.head_fraction * training + validation)
    train = config.num_server_rounds * (parts.round + parts.row) + evaluating
    start = parts.setup + parts.evaluation_image * val_images
    return Estimate(head, _calibration(config, parts), start, train, "a measured round")


def _calibration(config: RunConfig, parts: Parts) -> float:
    """Return the seconds of all calibration rounds: images that are scored, masks that are made."""
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
