"""The runs of a table in one figure: accuracy against rounds."""

from pathlib import Path

import pandas as pd

from experiments.reporting.records import partition_name
from experiments.running.cells import read_summary
from fedta_app.config import RunConfig
from fedta_app.plotting import (
    fit_shares,
    legend_below,
    new_figure,
    save_figure,
    show_percent,
    use_integers,
)
from fedta_app.runs.curves_figure import round_label
from fedta_app.runs.directory import run_path


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
    axis.set_xlabel(" or ".join(sorted({round_label(config) for config in configs})))
    show_percent(axis, f"{split} accuracy")
    fit_shares(axis)
    use_integers(axis.xaxis, 8)
    axis.grid(alpha=0.3)
    legend_below(figure, [axis])
    save_figure(path, figure)


def _title(configs: list[RunConfig]) -> str:
    """Return the data set and federation of all runs, or their data sets where those differ."""
    found = {_federation(config) for config in configs}
    return found.pop() if len(found) == 1 else ", ".join(sorted({c.dataset for c in configs}))


def _federation(config: RunConfig) -> str:
    if config.engine == "centralized":
        return f"{config.dataset}, centralised"
    return f"{config.dataset}, {config.num_clients} clients, {partition_name(config)}"


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
