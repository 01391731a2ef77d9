"""The tables of a report as data frames: cells, presets with intervals, paired comparisons."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.reporting.intervals import (
    Interval,
    equivalence_p,
    holm,
    interval,
    paired_test,
    smallest_detectable,
)
from experiments.reporting.records import TASK_FIGURES, Record, RecordError, by_preset
from experiments.running.presets import Preset, Table

ALPHA = 0.05
_FEWEST_IMAGES = 100  # of a test set, where an old record does not say how many it had
EQUAL, _EQUAL_HOLM = "p (equivalence)", "p (equivalence, Holm)"
DIFFERS, EQUIVALENT, UNDECIDED = "differs", "equivalent", "cannot be told"


def cells_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per cell, unrounded figures included."""
    return pd.DataFrame(
        [
            {
                "preset": record.preset.name,
                **record.preset.coordinates,
                "seed": record.seed,
                "test accuracy": record.final("test_accuracy"),
                "val accuracy": record.final("val_accuracy"),
                "test loss": record.final("test_loss"),
                "start val accuracy": record.start_accuracy,
                "density": record.density,
                "megabytes": record.megabytes,
                "rounds": record.config.num_server_rounds,
                "minutes": round(record.minutes, 1),
                "device": record.summary["device"],
                "commit": str(record.summary["code"]["commit"])[:8],
                "final weights": str(record.summary["final-weights-sha256"])[:12],
            }
            for record in records
        ]
    )


def _accuracy(group: Sequence[Record]) -> Interval:
    """Return the interval of the final test accuracy over the seeds of a preset."""
    return interval([record.final("test_accuracy") for record in group])


def presets_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per preset: mean and half width of the interval, unrounded."""
    rows = []
    for name, group in by_preset(records).items():
        accuracy = _accuracy(group)
        start = [record.start_accuracy for record in group if record.start_accuracy is not None]
        row: dict[str, Any] = {
            "preset": name,
            **group[0].preset.coordinates,
            "seeds": len(group),
            "test accuracy": accuracy.mean,
            "± (95 %)": accuracy.half,
            "start val accuracy": interval(start).mean if start else math.nan,
            "density": _density(group),
            "megabytes": interval([record.megabytes for record in group]).mean,
        }
        for figure in TASK_FIGURES:
            known = [value for r in group if (value := r.task_figure(figure)) is not None]
            if known:
                found = interval(known)
                row |= {figure: found.mean, f"{figure} ± (95 %)": found.half}
        rows.append(row)
    return pd.DataFrame(rows)


def _density(group: Sequence[Record]) -> float | None:
    """Return the mean density of a preset's masks, which differ where they are combined."""
    known = [record.density for record in group if record.density is not None]
    return interval(known).mean if known else None


def page_frame(table: Table, records: Sequence[Record]) -> pd.DataFrame:
    """Return the table as it is printed: `lines` by `panels` where the report names both.

    The entries are final test accuracies in percent, mean ± 95 % interval.
    """
    columns = table.report.get("panels")
    if columns is None or len(table.axes) < 2:
        return _page_of_presets(table, records)
    others = [axis for axis in table.axes if axis != columns]
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for group in by_preset(records).values():
        place = group[0].preset.coordinates
        line = lines.setdefault(tuple(place[axis] for axis in others), {})
        line[place[columns]] = _accuracy(group).percent()
    labels = [label for label in table.axes[columns] if any(label in row for row in lines.values())]
    return pd.DataFrame(
        [
            dict(zip(others, key, strict=True)) | {label: row.get(label, "-") for label in labels}
            for key, row in lines.items()
        ]
    )


def _page_of_presets(table: Table, records: Sequence[Record]) -> pd.DataFrame:
    """Return a line per preset, without columns that are empty in all lines."""
    rows = presets_frame(records)
    accuracies = [_accuracy(group) for group in by_preset(records).values()]
    starts = [f"{100 * start:.1f}" for start in rows["start val accuracy"]]
    page = pd.DataFrame(
        {
            **({axis: rows[axis] for axis in table.axes} or {"preset": rows["preset"]}),
            "test accuracy, %": [accuracy.percent() for accuracy in accuracies],
            "start (validation), %": ["" if start == "nan" else start for start in starts],
            "density": ["" if pd.isna(density) else f"{density:g}" for density in rows["density"]],
            "MB moved": [f"{megabytes:,.0f}" for megabytes in rows["megabytes"]],
            "seeds": rows["seeds"],
        }
    )
    return page.loc[:, [name for name in page.columns if (page[name] != "").any()]]


def trajectories_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per preset: validation accuracy at the start, its lowest, its mean, its end.

    Each is the mean over the seeds with its 95 % interval, in percent. Mean and lowest are over
    the rounds that were measured.
    """
    rows = []
    for name, group in by_preset(records).items():
        starts = [record.start_accuracy for record in group if record.start_accuracy is not None]
        found = [record.trajectory for record in group]
        row = {"preset": name, "start": interval(starts).percent() if starts else ""}
        for figure in ("lowest", "mean", "end"):
            values = [each[figure] for each in found if each]
            row[figure] = interval(values).percent() if values else ""
        rows.append(row)
    return pd.DataFrame(rows)


def comparisons_frame(table: Table, records: Sequence[Record]) -> pd.DataFrame | None:
    """Return the paired comparisons of the methods, None where there are none.

    Methods are the labels of the axis `compare`, or of several, joined. Each is compared with
    `reference`, or with each other, where everything else is equal; a pair is a seed. Holm's
    correction is over the comparisons that the table plans in one setting of the other axes
    (`family`), run or not. The verdict is "differs", "equivalent" (within the table's `margin`,
    where it states one) or "cannot be told". Runs that end with equal weights are equivalent in
    any table.
    """
    if not table.compared:
        return None
    check_comparison(table)
    reference, margin = table.report.get("reference"), table.report.get("margin")
    planned = {s: len(_pairs(methods, reference)) for s, methods in _methods(table).items()}
    found: dict[tuple[str, ...], dict[str, dict[int, Record]]] = {}
    for record in records:
        setting, method = _split(table, record.preset)
        found.setdefault(setting, {}).setdefault(method, {})[record.seed] = record
    rows = []
    for setting, methods in found.items():
        place = dict(zip(_others(table), setting, strict=True))
        family: list[dict[str, Any]] = []
        for first, second in _pairs(list(methods), reference):
            if seeds := sorted(methods[first].keys() & methods[second].keys()):
                pair = [[methods[name][seed] for seed in seeds] for name in (first, second)]
                one, other = ([run.final("test_accuracy") for run in runs] for runs in pair)
                difference, p = paired_test(one, other)
                size = planned[setting]
                family.append(
                    {
                        **place,
                        " and ".join(table.compared): first,
                        "against": second,
                        "seeds": len(seeds),
                        "difference": difference.mean,
                        "± (95 %)": difference.half,
                        "detectable": smallest_detectable(one, other, size),
                        "p": p,
                        EQUAL: _equivalence(pair[0], pair[1], margin),
                        "family": size,
                    }
                )
        differ = holm([row["p"] for row in family], planned[setting])
        equal = holm([row[EQUAL] for row in family], planned[setting])
        for row, p, q in zip(family, differ, equal, strict=True):
            rows.append({**row, "p (Holm)": p, _EQUAL_HOLM: q, "verdict": verdict(p, q)})
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    return frame if margin else frame.drop(columns=[EQUAL, _EQUAL_HOLM])


def _equivalence(first: Sequence[Record], second: Sequence[Record], margin: float | None) -> float:
    """Return the p-value of two methods' not being equivalent: 0 where runs end the same.

    It is NaN where they do not, and no margin is stated.
    """
    weights = [[run.summary["final-weights-sha256"] for run in runs] for runs in (first, second)]
    if weights[0] == weights[1]:
        return 0.0
    if not margin:
        return math.nan
    one, other = ([run.final("test_accuracy") for run in runs] for runs in (first, second))
    known = (run.summary.get("data", {}).get("test-images") for run in (*first, *second))
    return equivalence_p(one, other, margin, min(images or _FEWEST_IMAGES for images in known))


def _others(table: Table) -> list[str]:
    """Return the axes that are not compared: their labels are the settings of a comparison."""
    return [axis for axis in table.axes if axis not in table.compared]


def check_comparison(table: Table) -> None:
    """Refuse a report that would compare with a method that is excluded where others are not."""
    reference = table.report.get("reference")
    for setting, methods in _methods(table).items():
        if reference is not None and reference not in methods:
            where = f" of {'-'.join(setting)}" if setting else ""
            raise RecordError(
                f"table {table.name!r} compares with {reference!r}, which is not among the "
                f"methods{where}: {', '.join(methods)}"
            )


def _split(table: Table, preset: Preset) -> tuple[tuple[str, ...], str]:
    """Return the labels of a preset on the axes that are not compared, and its method."""
    place = preset.coordinates
    setting = tuple(place[axis] for axis in _others(table))
    return setting, "-".join(place[axis] for axis in table.compared)


def _methods(table: Table) -> dict[tuple[str, ...], list[str]]:
    """Return the methods that the table plans in each setting of its other axes."""
    methods: dict[tuple[str, ...], list[str]] = {}
    for preset in table.presets:
        setting, method = _split(table, preset)
        methods.setdefault(setting, []).append(method)
    return methods


def _pairs(methods: list[str], reference: str | None) -> list[tuple[str, str]]:
    """Return which methods are compared: each with the reference, or each with each other."""
    if reference in methods:
        return [(method, reference) for method in methods if method != reference]
    if reference is not None:
        return []
    return list(itertools.combinations(methods, 2))


def verdict(p_difference: float, p_equivalence: float) -> str:
    """Return one of three words for a pair of p-values, each corrected for its family."""
    if p_difference < ALPHA:
        return DIFFERS
    return EQUIVALENT if p_equivalence < ALPHA else UNDECIDED


def print_comparisons(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons as they are printed, differences in percent points."""
    page = frame.copy()
    page["difference"] = [
        f"{100 * mean:+.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")
        for mean, half in zip(frame["difference"], frame["± (95 %)"], strict=True)
    ]
    page["detectable"] = ["" if math.isnan(d) else f"{100 * d:.1f}" for d in frame["detectable"]]
    # Tables without a margin, and runs that are compared by hand, have no test of equivalence.
    for column in page.columns.intersection(["p (Holm)", _EQUAL_HOLM]):
        page[column] = [_p_value(p) for p in frame[column]]
    return page.drop(columns=["± (95 %)", "p", EQUAL], errors="ignore")


def _p_value(p: float) -> str:
    if math.isnan(p):
        return ""
    return f"{p:.3f}" if p >= 0.0005 else "<0.001"


def pipes(frame: pd.DataFrame) -> str:
    """Return a data frame as a Markdown table."""
    header = [str(column) for column in frame.columns]
    rows = [[str(value) for value in row] for row in frame.itertuples(index=False)]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
