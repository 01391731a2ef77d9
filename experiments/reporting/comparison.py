"""Runs in one figure: those of a table, or those that `fedta compare` was given."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.reporting.intervals import interval
from experiments.reporting.line_figures import line_style
from experiments.reporting.records import partition_name
from experiments.reporting.variants import Variant
from fedta_app.config import RunConfig
from fedta_app.data.folder import FOLDER
from fedta_app.plotting import (
    fit_lines,
    fit_shares,
    legend_below,
    new_figure,
    panel_grid,
    save_figure,
    show_percent,
    use_integers,
)
from fedta_app.runs.curves_figure import round_label
from fedta_app.runs.directory import run_path
from fedta_app.runs.records import read_summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES = {  # columns of metrics.csv that are drawn, each in a panel of its own
    "val_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
    "train_loss": "training loss",
    "val_loss": "validation loss",
}


def save_comparison(path: Path, configs: list[RunConfig]) -> None:
    """Save the accuracy of finished runs against rounds, a line per run, as PNG.

    Test accuracy, or validation accuracy where test images were read only at the end.

    Parameters
    ----------
    configs : list of RunConfig
        Runs whose directories hold a metrics.csv and a summary.json.
    """
    figure = new_figure(6.4, 4)
    axis = figure.subplots()
    split = "test" if all(config.measure_test == "always" for config in configs) else "validation"
    column = "test_accuracy" if split == "test" else "val_accuracy"
    for config in configs:
        rows = pd.read_csv(run_path(config) / "metrics.csv")
        measured = rows[rows["phase"].isin(["start", "train"])].dropna(subset=[column])
        axis.plot(measured["round"], measured[column], "o-", markersize=3, label=_label(config))
    axis.set_title(_title(configs), fontsize="medium")
    axis.set_xlabel(_rounds(configs))
    show_percent(axis, f"{split} accuracy")
    fit_shares(axis)
    use_integers(axis.xaxis, 8)
    axis.grid(alpha=0.3)
    legend_below(figure, [axis])
    save_figure(path, figure)


def _rounds(configs: list[RunConfig]) -> str:
    return " or ".join(sorted({round_label(config) for config in configs}))


def _title(configs: list[RunConfig]) -> str:
    """Return the data set and federation of all runs, or their data sets where those differ."""
    found = {_federation(config) for config in configs}
    return found.pop() if len(found) == 1 else ", ".join(sorted(set(map(_dataset, configs))))


def _federation(config: RunConfig) -> str:
    if config.engine == "centralized":
        return f"{_dataset(config)}, centralised"
    return f"{_dataset(config)}, {config.num_clients} clients, {partition_name(config)}"


def _dataset(config: RunConfig) -> str:
    return Path(config.image_folder).name if config.dataset == FOLDER else config.dataset


def _label(config: RunConfig) -> str:
    summary = read_summary(run_path(config))
    head = {"random": "trained head", "ridge": "ridge head", "probe": "linear-probe head"}
    trained = "all weights"
    if config.mask_rule != "none":
        trained = f"{summary['mask']['density']:.0%} of the weights, {config.mask_rule}"
    parts = [head[config.head], trained]
    if moved := (summary["bytes-up"] + summary["bytes-down"]) / 1e6:
        parts.append(f"{moved:.0f} MB moved")
    return f"{config.name.rpartition('/')[2]}: {', '.join(parts)}"


def curves_figure(variants: Sequence[Variant]) -> "Figure":
    """Draw accuracies and losses against rounds, each in a panel: a line per run, over its seeds.

    Bands are 95 % intervals of accuracies over three seeds or more. A panel whose figures were
    measured once is left out.
    """
    seeds = [seed for variant in variants for seed in variant.seeds.values()]
    shown = [c for c in _CURVES if any(len(seed.values(c)) > 1 for seed in seeds)] or [
        "val_accuracy"
    ]
    figure, axes = panel_grid(len(shown), panel=(3.4, 2.7), margin=(0.6, 0.9), least_width=4.6)
    for axis, column in zip(axes, shown, strict=True):
        for number, variant in enumerate(variants):
            _draw_mean(axis, variant, column, line_style(number, variant.name))
        axis.set_title(_CURVES[column], fontsize="medium")
        axis.set_xlabel(_rounds([variant.config for variant in variants]))
        use_integers(axis.xaxis, 6)
        axis.grid(alpha=0.3)
        if column.endswith("accuracy"):
            show_percent(axis, "")
        fit_lines([axis], 1.0 if column.endswith("accuracy") else math.inf)
    legend_below(figure, axes, 3)
    return figure


def _draw_mean(axis: "Axes", variant: Variant, column: str, style: dict[str, Any]) -> None:
    found = [seed.values(column) for seed in variant.seeds.values()]
    rounds = sorted(set.intersection(*(set(values) for values in found)))
    means = [interval([values[r] for values in found]) for r in rounds]
    if not rounds:
        return  # nothing was measured, or not yet
    middle = np.array([mean.mean for mean in means])
    half = np.nan_to_num([mean.half for mean in means])
    axis.plot(rounds, middle, **style, markevery=max(1, len(rounds) // 8))
    if column.endswith("accuracy") and len(found) > 2:  # those of two seeds would hide the rest
        low, high = middle - half, middle + half
        axis.fill_between(rounds, low, high, color=style["color"], alpha=0.15, lw=0)
