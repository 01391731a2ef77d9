"""The sanity gate of a table: what must hold before its figures mean anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from experiments.reporting.records import Record
from experiments.running.cells import identity
from fedta_app.algorithms import make_algorithm
from fedta_app.config import RunConfig
from fedta_app.data.sets import DATASETS
from fedta_app.keys.algorithm import ON_HEAD
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
    return Check(name, not wrong, _first(wrong) if wrong else fine)


def _first(found: Sequence[str]) -> str:
    return found[0] + (f", and {len(found) - 1} more" if len(found) > 1 else "")


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
    """Hold the starts of ridge heads on different partitions against each other.

    Heads that hostile clients had a part in, or failed ones none, do depend on whose images are
    whose.
    """
    name = "the ridge start does not depend on the partition"
    groups: dict[tuple[object, ...], dict[object, list[tuple[float, str]]]] = {}
    for record in records:
        config, start = record.config, record.start_accuracy
        if config.head == "ridge" and start is not None and not _of_some_clients(record):
            precision = record.summary.get("precision", config.precision)
            found = record.summary["identity"]
            same = config.values_that_decide("start")
            same |= {"weights": found["weights-file-sha256"], "precision": precision}  # as resolved
            same["data"] = found["data-sha256"]  # natural clients are drawn with their images
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


def _of_some_clients(record: Record) -> bool:
    """Tell whether the first ridge head is not made from the true sums of all clients."""
    config = record.config
    if config.attackers > 0 and config.attack in ON_HEAD:
        return True
    failed = (int(row["clients_failed"]) for row in record.rows if row["phase"] == "head")
    return config.missing_clients == "go-on" and any(failed)


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
    """Hold all cells against each other: each is a run of its own, and another seed another result.

    Presets may end with equal weights, where what differs in them has no effect: a norm that no
    gradient reaches. That is a result, and is said. What needs no mention by name are attacks,
    which a defence can leave out, and what clients keep for themselves alone.
    """
    name = "seeds and presets are different runs"
    if len(records) < 2:
        return Check(name, None, "there is one cell")
    runs: dict[str, Record] = {}
    ends: dict[str, Record] = {}
    wrong, idle, expected = [], [], 0
    for record in records:
        for session in record.summary["sessions"]:
            other = runs.setdefault(session["id"], record) if "id" in session else record
            if other is not record:
                wrong.append(f"{other.label} and {record.label} are records of one run")
        other = ends.setdefault(record.summary["final-weights-sha256"], record)
        one, two = other.config, record.config
        if other is record:
            continue
        if one.seed != two.seed or identity(one) == identity(two):
            wrong.append(f"{other.label} and {record.label} end with equal weights")
        elif _of_honest_weights(one) == _of_honest_weights(two):
            expected += 1
        else:
            idle.append(f"{other.preset.label} and {record.preset.label}")
    fine = f"{len(records)} cells end with different weights"
    if expected:
        fine += (
            f", but for {expected} that need not: an attack is left out, or clients keep what "
            "differs"
        )
    if idle:
        pairs = _first(list(dict.fromkeys(idle)))
        fine += f", but {pairs} end with equal weights: what differs in them did nothing"
    return _check(name, wrong, fine)


def _of_honest_weights(config: RunConfig) -> RunConfig:
    """Return a configuration without what the server's weights need not depend on."""
    values: dict[str, Any] = {"name": "run", "personal_ridge": 0.0}
    if config.attackers > 0:
        values["attack"] = RunConfig.attack
    if make_algorithm(config.strategy, vars(config)).personal:
        values |= {"strategy": "fedavg", "pull": RunConfig.pull}
    return config.with_values(**values)
