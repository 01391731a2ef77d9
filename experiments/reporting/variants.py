"""Runs beside each other: `fedta compare RUN RUN ...`.

A run is a run directory, or the folder above its seeds, whose figures are then means over seeds.
The first run is what the others are held against, seed by seed: a seed decides partition, sampled
clients and initial weights, so that two runs of one seed share them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.reporting.frames import verdict
from experiments.reporting.intervals import holm, interval, paired_test, smallest_detectable
from experiments.reporting.records import RecordError
from experiments.reporting.versions import cells_by_version, code_versions, codes_of
from experiments.running.cells import SEED_FOLDER, run_folders
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.files import read_toml
from fedta_app.runs.records import read_rows, read_summary

_NOT_READ = "not read"


@dataclass(frozen=True)
class Seed:
    """The run of one seed, as its directory or record holds it."""

    folder: Path
    config: RunConfig

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds; empty where it is missing."""
        return read_summary(self.folder)

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """The rows of metrics.csv from round 0 on, without head and calibration."""
        return [row for row in read_rows(self.folder) if row["phase"] in ("start", "train")]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary.get("status") == "finished"

    def values(self, column: str) -> dict[int, float]:
        """Return a column of metrics.csv by round, wherever it was measured."""
        return {int(row["round"]): float(row[column]) for row in self.rows if row.get(column)}

    def last(self, column: str) -> float:
        """Return the last value of a column, NaN where there is none."""
        return next(reversed(self.values(column).values()), math.nan)


@dataclass(frozen=True)
class Variant:
    """The runs of one configuration, by seed."""

    name: str
    seeds: dict[int, Seed]

    @property
    def config(self) -> RunConfig:
        """The configuration, of the first seed."""
        return next(iter(self.seeds.values())).config


def find_variants(named: Sequence[str], results: Path) -> list[Variant]:
    """Return the runs of these paths, which are looked up in `results` where they do not exist.

    Raises
    ------
    RecordError
        When there is no run at a path, or runs of several configurations.
    """
    found = [_find(text, results) for text in named]
    names = [variant.name for variant in found]
    if len(set(names)) < len(names):  # copies, seeds, records beside runs: by what was typed
        names = [text.rstrip("/") for text in named]
    if len(set(names)) < len(names):
        raise RecordError(f"a run is named twice: {', '.join(names)}")
    return [Variant(name, v.seeds) for name, v in zip(names, found, strict=True)]


def _find(text: str, results: Path) -> Variant:
    path = Path(text).expanduser()
    if not path.exists() and (results / text).exists():
        path = results / text
    folders = [path] if SEED_FOLDER.fullmatch(path.name) else run_folders(path, depth=0)
    folders = [folder for folder in folders if (folder / "config.toml").exists()]
    if not folders:
        raise RecordError(_nothing(text, path, results))
    seeds = {}
    for folder in folders:
        try:
            config = RunConfig.from_mapping(read_toml(folder / "config.toml"))
        except ConfigError as error:
            raise RecordError(f"{folder} cannot be compared: {error}") from error
        seeds[config.seed] = Seed(folder, config)
    seeds = dict(sorted(seeds.items()))
    variant = Variant(next(iter(seeds.values())).config.name, seeds)
    differing = config_frame([Variant(str(seed), {seed: run}) for seed, run in seeds.items()])
    if len(differing):
        raise RecordError(
            f"the seeds in {path} differ in {', '.join(differing['key'])}: name the run "
            "directories of equal ones"
        )
    return variant


def _nothing(text: str, path: Path, results: Path) -> str:
    """Return what was looked for where, and which runs are there."""
    where = path if path.exists() else results
    below = sorted({str(folder.parent) for folder in run_folders(where)})
    shown = ", ".join(below[:6]) + (f" and {len(below) - 6} more" if len(below) > 6 else "")
    kind = "is no run" if path.exists() else f"does not exist, nor does {results / text}"
    return f"{text} {kind}; runs in {where}: {shown or 'none'}"


def figures_frame(variants: Sequence[Variant]) -> pd.DataFrame:
    """Return a row per run: accuracies in percent, with their 95 % intervals over seeds."""
    rows = []
    for variant in variants:
        seeds = list(variant.seeds.values())
        states = {str(seed.summary.get("status", "unfinished")) for seed in seeds}
        rounds = {max(seed.values("seconds"), default=0) for seed in seeds}
        best = [max(seed.values("val_accuracy").values(), default=math.nan) for seed in seeds]
        start = [seed.values("val_accuracy").get(0, math.nan) for seed in seeds]
        moved = [
            (seed.summary.get("bytes-up", 0) + seed.summary.get("bytes-down", 0)) / 1e6
            for seed in seeds
        ]
        rows.append(
            {
                "run": variant.name,
                "seeds": ", ".join(map(str, variant.seeds)),
                "rounds": " to ".join(map(str, sorted({min(rounds), max(rounds)}))),
                "test, %": _percent([seed.last("test_accuracy") for seed in seeds]),
                "validation, %": _percent([seed.last("val_accuracy") for seed in seeds]),
                "best validation, %": _percent(best),
                "round 0, %": _percent(start),
                "MB moved": f"{np.mean(moved):,.0f}",
                "state": ", ".join(sorted(states)),
            }
        )
    frame = pd.DataFrame(rows)
    return frame.drop(columns="state") if set(frame["state"]) == {"finished"} else frame


def _percent(values: Sequence[float]) -> str:
    return "-" if np.isnan(values).any() else interval(values).percent()


def config_frame(variants: Sequence[Variant]) -> pd.DataFrame:
    """Return a row for each key in which runs differ, and for code, processor and torch.

    A key that only some of the runs read is left out where those agree: then another key in which
    the runs differ is why.
    """
    read = [variant.config.values_that_decide("result", "rounding") for variant in variants]
    for keys, variant in zip(read, variants, strict=True):
        keys["centralised"] = variant.config.engine == "centralized"
    rows: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for keys in read for key in keys):
        if key not in ("seed", "device"):  # auto and cuda may be one processor
            rows[key] = [str(keys.get(key, _NOT_READ)) for keys in read]
    summaries = [[s.summary for s in v.seeds.values() if "code" in s.summary] for v in variants]
    cells = [(str(number), summary) for number, s in enumerate(summaries) for summary in s]
    versions = code_versions(code for _, summary in cells for code in codes_of(summary))
    names = cells_by_version(versions, cells)
    rows["code, by commit"] = [
        " and ".join(v.name for v, those in zip(versions, names, strict=True) if str(n) in those)
        for n in range(len(variants))
    ]
    rows["weights, by sha256"] = [_one(_weights(s) for s in group) for group in summaries]
    rows["processor"] = [_one(str(s.get("device")) for s in group) for group in summaries]
    rows["torch"] = [_one(str(s["versions"]["torch"]) for s in group) for group in summaries]
    differing = {key: row for key, row in rows.items() if len(set(row) - {_NOT_READ}) > 1}
    columns = [variant.name for variant in variants]
    return pd.DataFrame(
        [
            {"key": key, **dict(zip(columns, values, strict=True))}
            for key, values in differing.items()
        ],
        columns=["key", *columns],
    )


def _weights(summary: Mapping[str, Any]) -> str:
    """Return the first digits of the sha256 of the file that a run began from."""
    if (summary.get("weights") or {}).get("kind") == "random":
        return "random"  # and others with every seed
    return str((summary.get("identity") or {}).get("weights-file-sha256") or "none")[:12]


def _one(values: Any) -> str:
    return " and ".join(sorted(set(values)))


def differences_frame(variants: Sequence[Variant]) -> tuple[pd.DataFrame, list[str]]:
    """Return each run against the first, and what is to be said of it.

    The columns are those of `experiments.reporting.frames.comparisons_frame`. Accuracies are those
    of the last round, on test images where all runs measured them, over the seeds that both runs
    finished on the same data.
    """
    first, *others = variants
    runs = [seed for variant in variants for seed in variant.seeds.values() if seed.finished]
    tested = all(not math.isnan(seed.last("test_accuracy")) for seed in runs)
    column = "test_accuracy" if tested else "val_accuracy"
    rows: list[dict[str, Any]] = []
    notes = []
    for other in others:
        seeds = [seed for seed in first.seeds if _is_pair(first, other, seed)]
        if not seeds:
            notes.append(
                f"{other.name} and {first.name} share no seed that both finished on the same data: "
                "their difference has no interval, and none is given"
            )
            continue
        if all(_equal_weights(first.seeds[seed], other.seeds[seed]) for seed in seeds):
            notes.append(
                f"{other.name} and {first.name} end with equal weights: what differs in their "
                "configurations did nothing"
            )
        one, two = ([v.seeds[seed].last(column) for seed in seeds] for v in (other, first))
        difference, p = paired_test(one, two)
        rows.append(
            {
                "run": other.name,
                "against": first.name,
                "seeds": len(seeds),
                "difference": difference.mean,
                "± (95 %)": difference.half,
                "detectable": smallest_detectable(one, two, len(others)),
                "p": p,
                "family": len(others),
            }
        )
    adjusted = holm([row["p"] for row in rows], len(others))
    for row, p in zip(rows, adjusted, strict=True):
        row |= {"p (Holm)": p, "verdict": verdict(p, math.nan)}
    if any(row["seeds"] == 1 for row in rows):
        notes.append("one seed has no interval, and tells no difference from noise: run more seeds")
    split = "test" if tested else "validation"
    notes.append(
        f"differences are percent points of {split} accuracy after the last round, paired by seed, "
        "with their 95 % interval (Student's t); Holm's correction over all runs but the first"
    )
    return pd.DataFrame(rows), notes


def _equal_weights(one: Seed, other: Seed) -> bool:
    name = "final-weights-sha256"
    return one.summary.get(name) is not None and one.summary[name] == other.summary.get(name)


def _is_pair(first: Variant, other: Variant, seed: int) -> bool:
    """Return whether both runs finished with a seed, on the same data."""
    if seed not in other.seeds:
        return False
    one, two = first.seeds[seed], other.seeds[seed]
    data = [run.summary.get("identity", {}).get("data-sha256") for run in (one, two)]
    return one.finished and two.finished and data[0] == data[1]
