"""The sanity gate of a table: what must hold before its figures mean anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from experiments.reporting.records import Record
from fedta_app.algorithms import make_algorithm
from fedta_app.config import RunConfig
from fedta_app.data.sets import DATASETS
from fedta_app.masks.selection import round_density
from fedta_app.training.evaluation import highest_by_chance

_START_TOLERANCE = 0.002  # a ridge head is the same up to the order of a sum: ties may fall apart


@dataclass(frozen=True)
class Check:
    """One thing that must hold; `holds` is None where a table has nothing that it applies to."""

    name: str
    holds: bool | None
    detail: str

    @property
    def outcome(self) -> str:
        """Whether it holds, in words."""
        return {True: "holds", False: "FAILS", None: "does not apply"}[self.holds]

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome} ({self.detail})"


def sanity_gate(records: Sequence[Record]) -> list[Check]:
    """Return every check of a table's records."""
    checks = (_above_chance, _equal_starts, _density, _frozen, _distinct)
    return [check(records) for check in checks]


def _check(name: str, wrong: Sequence[str], fine: str) -> Check:
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return Check(name, not wrong, f"{wrong[0]}{more}" if wrong else fine)


def _above_chance(records: Sequence[Record]) -> Check:
    """Hold heads that were made before training against chance, by three standard errors."""
    name = "round 0 is above chance"
    starts = [
        (record.start_accuracy, record)
        for record in records
        if record.config.head != "random" and record.start_accuracy is not None
    ]
    if not starts:
        return Check(name, None, "every head is trained from random weights")
    wrong = []
    for accuracy, record in starts:
        highest = highest_by_chance(*_classes_and_images(record))
        if highest is not None and accuracy <= highest:
            wrong.append(f"{record.label}: {accuracy:.1%}")
    lowest = min(accuracy for accuracy, _ in starts)
    return _check(name, wrong, f"the lowest of {len(starts)} starts is {lowest:.1%}")


def _classes_and_images(record: Record) -> tuple[int, int]:
    """Return the numbers of classes and of validation images; old records do not say them."""
    summary, config = record.summary, record.config
    if "data" in summary:
        return summary["model"]["classes"], summary["data"]["validation-images"]
    known = DATASETS[config.dataset]
    images = round(config.val_size * known.images)
    return known.classes, min(images, config.eval_size or images)


def _equal_starts(records: Sequence[Record]) -> Check:
    """Hold the starts of ridge heads on different partitions against each other."""
    name = "the ridge start does not depend on the partition"
    groups: dict[tuple[object, ...], dict[object, list[tuple[float, str]]]] = {}
    for record in records:
        config, start = record.config, record.start_accuracy
        if config.head == "ridge" and start is not None:
            precision = record.summary.get("precision", config.precision)
            weights = record.summary["identity"]["weights-file-sha256"]
            same = config.values_that_decide("start")
            same |= {"weights": weights, "precision": precision}  # as the run resolved them
            where = tuple(config.values_that_decide("partition").items())  # none: no clients
            group = groups.setdefault(tuple(same.values()), {})
            group.setdefault(where, []).append((start, record.label))
    compared = [list(chain(*group.values())) for group in groups.values() if len(group) > 1]
    if not compared:
        return Check(name, None, "no two partitions start from a ridge head")
    wrong, widest = [], 0.0
    for starts in compared:
        (low, lowest), (high, highest) = min(starts), max(starts)
        widest = max(widest, high - low)
        if high - low > _START_TOLERANCE:
            wrong.append(f"{lowest}: {low:.2%}, {highest}: {high:.2%}")
    return _check(name, wrong, f"largest difference {100 * widest:.2f} percent points")


def _density(records: Sequence[Record]) -> Check:
    """Hold masks of a given density against the exact number of weights that they must train."""
    name = "the density is the one asked for"
    masked = [record for record in records if _has_exact_density(record.config)]
    if not masked:
        return Check(name, None, "no cell has a mask of a given density")
    wrong = []
    for record in masked:
        if not (mask := record.summary.get("mask")):
            wrong.append(f"{record.label} has no mask")
        elif mask["trained"] != (asked := round_density(record.config.sparsity, mask["of"])):
            wrong.append(f"{record.label}: {mask['trained']} of {mask['of']}, not {asked}")
    return _check(name, wrong, f"{len(masked)} masks, to the weight")


def _has_exact_density(config: RunConfig) -> bool:
    """Tell whether the final mask has `sparsity`: not a union of masks, not one by a threshold."""
    if config.mask_rule == "none" or config.score_threshold or config.sparsity_scope != "global":
        return False
    return config.mask_scope in ("global", "vote", "server") or config.engine == "centralized"


def _frozen(records: Sequence[Record]) -> Check:
    """Look up what `experiments.reporting.collect` found when it compared the weights."""
    name = "frozen weights kept their bits"
    masked = [record for record in records if record.config.mask_rule != "none"]
    if not masked:
        return Check(name, None, "no cell has a mask")
    wrong = [r.label for r in masked if r.summary.get("frozen-weights-untouched") is not True]
    return _check(name, wrong, f"{len(masked)} cells, compared with their first weights")


def _distinct(records: Sequence[Record]) -> Check:
    """Hold the final weights of all cells against each other: no two may be equal.

    Cells that differ by their attack alone may: a defence can leave out all that is hostile. So may
    those that differ by what clients keep for themselves alone.
    """
    name = "seeds and presets are different runs"
    if len(records) < 2:
        return Check(name, None, "there is one cell")
    seen: dict[str, Record] = {}
    wrong = []
    for record in records:
        other = seen.setdefault(record.summary["final-weights-sha256"], record)
        if other is not record and not _may_be_equal(other.config, record.config):
            wrong.append(f"{other.label} and {record.label} end with equal weights")
    same = len(records) - len(seen)
    fine = f"{len(records)} cells end with different weights"
    but = f", but for {same} that need not: an attack is left out, or clients keep what differs"
    return _check(name, wrong, fine + (but if same else ""))


def _may_be_equal(one: RunConfig, other: RunConfig) -> bool:
    """Tell whether two runs differ by an attack, or by what clients keep for themselves, alone."""
    if one.with_values(name=other.name) == other:
        return False  # two presets that are the same run
    return _of_honest_weights(one) == _of_honest_weights(other)


def _of_honest_weights(config: RunConfig) -> RunConfig:
    """Return a configuration without what the server's weights need not depend on."""
    values: dict[str, Any] = {"name": "run", "personal_ridge": 0.0}
    if config.attackers > 0:
        values["attack"] = RunConfig.attack
    if make_algorithm(config.strategy, vars(config)).personal:
        values |= {"strategy": "fedavg", "pull": RunConfig.pull}
    return config.with_values(**values)
