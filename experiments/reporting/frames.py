"""The tables of a report as data frames: cells, presets with intervals, paired comparisons."""

import math
from collections.abc import Sequence

import pandas as pd

from experiments.reporting.intervals import Interval, holm, interval, paired_test
from experiments.reporting.records import TASK_FIGURES, Record, RecordError, by_preset
from experiments.running.presets import Preset, Table

ALPHA = 0.05
NONE, NO_TEST = "none", "no test"


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
                "density": (record.summary.get("mask") or {}).get("density"),
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


def accuracies(records: Sequence[Record]) -> dict[str, Interval]:
    """Return the interval of the final test accuracy of each preset."""
    return {
        name: interval([record.final("test_accuracy") for record in group])
        for name, group in by_preset(records).items()
    }


def presets_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row per preset: mean and half width of the interval, unrounded."""
    rows = []
    for name, group in by_preset(records).items():
        accuracy = interval([record.final("test_accuracy") for record in group])
        start = [record.start_accuracy for record in group if record.start_accuracy is not None]
        rows.append(
            {
                "preset": name,
                **group[0].preset.coordinates,
                "seeds": len(group),
                "test accuracy": accuracy.mean,
                "± (95 %)": accuracy.half,
                "start val accuracy": interval(start).mean if start else math.nan,
                "density": (group[0].summary.get("mask") or {}).get("density"),
                "megabytes": interval([record.megabytes for record in group]).mean,
                **_task_columns(group),
            }
        )
    return pd.DataFrame(rows)


def _task_columns(group: Sequence[Record]) -> dict[str, float]:
    """Return mean and half width of what is known of the clients' task vectors."""
    columns: dict[str, float] = {}
    for name in TASK_FIGURES:
        values = [value for record in group if (value := record.task_figure(name)) is not None]
        if values:
            found = interval(values)
            columns |= {name: found.mean, f"{name} ± (95 %)": found.half}
    return columns


def page_frame(table: Table, records: Sequence[Record]) -> pd.DataFrame:
    """Return the table as it is printed: `lines` by `panels` where the report names both.

    The cells are final test accuracies in percent, mean ± 95 % interval.
    """
    found = accuracies(records)
    coordinates = {record.preset.name: record.preset.coordinates for record in records}
    columns = table.report.get("panels")
    if columns is None or len(table.axes) < 2:
        rows = presets_frame(records)
        page = pd.DataFrame(
            {
                **({axis: rows[axis] for axis in table.axes} or {"preset": rows["preset"]}),
                "test accuracy, %": [found[name].percent() for name in rows["preset"]],
                "start (validation), %": [_percent(value) for value in rows["start val accuracy"]],
                "density": [_number(value) for value in rows["density"]],
                "MB moved": [f"{value:,.0f}" for value in rows["megabytes"]],
                "seeds": rows["seeds"],
            }
        )
        return page.loc[:, [name for name in page.columns if (page[name] != "").any()]]
    others = [axis for axis in table.axes if axis != columns]
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for name, accuracy in found.items():
        place = coordinates[name]
        key = tuple(place[axis] for axis in others)
        lines.setdefault(key, {})[place[columns]] = accuracy.percent()
    labels = [label for label in table.axes[columns] if any(label in row for row in lines.values())]
    return pd.DataFrame(
        [
            dict(zip(others, key, strict=True)) | {label: row.get(label, "-") for label in labels}
            for key, row in lines.items()
        ]
    )


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:g}"


def comparisons_frame(table: Table, records: Sequence[Record]) -> pd.DataFrame | None:
    """Return the paired comparisons of the methods, None where the report names none.

    Methods are the labels of the axis `compare`, or of several, joined. Each is compared with
    `reference`, or with each other, where everything else is equal; a pair is a seed. Holm's
    correction is over the comparisons that the table plans in one setting of the other axes
    (`family`), run or not.
    """
    if not table.compared:
        return None
    check_comparison(table)
    settings: dict[tuple[str, ...], dict[str, dict[int, float]]] = {}
    for record in records:
        setting, method = _split(table, record.preset)
        scores = settings.setdefault(setting, {}).setdefault(method, {})
        scores[record.seed] = record.final("test_accuracy")
    planned = _planned(table)
    rows = []
    others = [name for name in table.axes if name not in table.compared]
    for setting, methods in settings.items():
        for first, second in _pairs(list(methods), table.report.get("reference")):
            seeds = sorted(methods[first].keys() & methods[second].keys())
            if not seeds:
                continue
            one, other = ([methods[name][seed] for seed in seeds] for name in (first, second))
            difference, p = paired_test(one, other)
            rows.append(
                {
                    **dict(zip(others, setting, strict=True)),
                    " and ".join(table.compared): first,
                    "against": second,
                    "seeds": len(seeds),
                    "difference": difference.mean,
                    "± (95 %)": difference.half,
                    "p": p,
                    "family": planned[setting],
                }
            )
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    families = frame.groupby(others, sort=False) if others else [((), frame)]
    for _, family in families:
        size = int(family["family"].iloc[0])
        frame.loc[family.index, "p (Holm)"] = holm(family["p"].tolist(), size)
    frame["verdict"] = [
        _verdict(difference, p)
        for difference, p in zip(frame["difference"], frame["p (Holm)"], strict=True)
    ]
    return frame


def check_comparison(table: Table) -> None:
    """Refuse a report that would compare with a method that is not there."""
    for axis in table.compared:
        if axis not in table.axes:
            raise RecordError(f"table {table.name!r} compares {axis!r}, which is none of its axes")
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
    setting = tuple(label for name, label in place.items() if name not in table.compared)
    return setting, "-".join(place[axis] for axis in table.compared)


def _methods(table: Table) -> dict[tuple[str, ...], list[str]]:
    """Return the methods that the table plans in each setting of its other axes."""
    methods: dict[tuple[str, ...], list[str]] = {}
    for preset in table.presets:
        setting, method = _split(table, preset)
        methods.setdefault(setting, []).append(method)
    return methods


def _planned(table: Table) -> dict[tuple[str, ...], int]:
    """Return how many comparisons the table plans in each setting of its other axes."""
    reference = table.report.get("reference")
    return {setting: len(_pairs(names, reference)) for setting, names in _methods(table).items()}


def _pairs(methods: list[str], reference: str | None) -> list[tuple[str, str]]:
    if reference in methods:
        return [(method, reference) for method in methods if method != reference]
    if reference is not None:
        return []
    return [(first, second) for i, first in enumerate(methods) for second in methods[i + 1 :]]


def _verdict(difference: float, p: float) -> str:
    if math.isnan(p):
        return NO_TEST
    if p >= ALPHA:
        return NONE
    return "better" if difference > 0 else "worse"


def print_comparisons(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons as they are printed, differences in percent points."""
    page = frame.copy()
    page["difference"] = [
        f"{100 * mean:+.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")
        for mean, half in zip(frame["difference"], frame["± (95 %)"], strict=True)
    ]
    for column in ("p", "p (Holm)"):
        page[column] = ["" if math.isnan(p) else f"{p:.3f}" for p in frame[column]]
    return page.drop(columns="± (95 %)")
