"""Accuracy and loss against rounds, bytes, and multiples of task vectors: means over seeds.

Lines are the labels of the report's axis `lines`, panels those of `panels`; a table with more axes
has a figure for each label of the others.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.reporting.intervals import interval
from experiments.reporting.records import Group, Record
from experiments.running.presets import Table
from fedta_app.plotting import (
    MOST_COLUMNS,
    fit_lines,
    fit_losses,
    legend_below,
    panel_grid,
    show_percent,
    use_logarithms,
)
from fedta_app.runs.curves_figure import note_on_test, round_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]
Plot = Callable[["Axes", list[Record], dict[str, Any]], None]  # a line, its seeds and its style

# Dark enough on white, told apart without colour vision (Okabe and Ito), and by marker.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C8C8C"
)  # fmt: skip
_MARKERS = "os^Dvp*X"


def curves(table: Table, drawn: Group) -> "Figure":
    """Draw validation accuracy against rounds: the mean of the seeds, and its 95 % interval.

    Test accuracy is a dashed line where it was measured in more than one round.
    """
    return _against_rounds(table, drawn, "accuracy")


def losses(table: Table, drawn: Group) -> "Figure | None":
    """Draw validation loss, and test loss, as `curves` does; None if no record has the former."""
    known = _only(drawn, lambda record: record.curve("val_loss"))
    return _against_rounds(table, known, "loss") if known else None


def _against_rounds(table: Table, drawn: Group, figure: str) -> "Figure":
    records = [record for lines in drawn.values() for group in lines.values() for record in group]
    test_curve = any(len(record.curve(f"test_{figure}")) > 1 for record in records)

    def plot(axis: "Axes", group: list[Record], style: dict[str, Any]) -> None:
        rounds, means, halves, _ = _mean_curve(group, f"val_{figure}")
        axis.plot(rounds, means, **style, markevery=_sparse(rounds))
        low, high = means - halves, means + halves
        axis.fill_between(rounds, low, high, color=style["color"], alpha=0.15, lw=0)
        tests = _mean_curve(group, f"test_{figure}")
        if tests.shape[1] > 1:
            axis.plot(tests[0], tests[1], color=style["color"], linestyle="--", linewidth=1)

    # Records from before there was a validation loss keep the figures that they had.
    silent = test_curve or not any(record.curve("val_loss") for record in records)
    splits = "validation (solid), test (dashed)" if test_curve else "validation"
    drawing = _draw(
        table,
        drawn,
        plot,
        "round",
        label=f"{splits} {figure}",
        shares=figure == "accuracy",
        note="" if silent else note_on_test(records[0].config.measure_test),
    )
    for axis, lines in zip(drawing.axes, drawn.values(), strict=False):
        if all(round_label(group[0].config) == "epoch" for group in lines.values()):
            axis.set_xlabel("epoch")
    return drawing


def against_bytes(table: Table, drawn: Group) -> "Figure | None":
    """Draw validation accuracy against what was moved so far, of head and calibration too.

    A panel without a federation has nothing to show.
    """

    def plot(axis: "Axes", group: list[Record], style: dict[str, Any]) -> None:
        _, means, _, moved = _mean_curve(group)
        shown = moved > 0
        axis.plot(moved[shown], means[shown], **style, markevery=_sparse(moved[shown]))

    federated = {
        panel: lines
        for panel, lines in drawn.items()
        if any(record.megabytes for group in lines.values() for record in group)
    }
    if not federated:
        return None
    figure = _draw(table, federated, plot, "MB up and down")
    for axis in figure.axes[: len(federated)]:
        use_logarithms(axis)
    return figure


def scaled(table: Table, drawn: Group) -> "Figure | None":
    """Draw validation accuracy against the scale of the whole run's task vector."""
    return _by_points(
        table, drawn, "scaling", "scale", ["val_accuracy"], "scale of the task vector"
    )


def negated(table: Table, drawn: Group) -> "Figure | None":
    """Draw target (solid) and control accuracy (dashed) against how much was subtracted."""
    label = "length subtracted (1: that of the run's task vector)"
    return _by_points(table, drawn, "negation", "length", ["target", "control"], label)


def interference(table: Table, drawn: Group) -> "Figure | None":
    """Draw how one client's update changes the loss on others' images (solid) and its own."""
    figure = _by_points(
        table, drawn, "interference", "round", ["others", "own"], "round",
        label="change of loss by an update", shares=False,
    )  # fmt: skip
    for axis in figure.axes if figure else ():
        axis.autoscale(axis="y")  # below zero too
        axis.axhline(0, color="0.5", linewidth=0.8)
    return figure


def drift(table: Table, drawn: Group) -> "Figure | None":
    """Draw the accuracy with the head in use (solid), and with one solved afresh (dashed)."""
    columns = ["head_accuracy", "fresh_head_accuracy"]
    return _by_points(table, drawn, "interference", "round", columns, "round")


def _by_points(
    table: Table,
    drawn: Group,
    name: str,
    x: str,
    columns: list[str],
    across: str,
    **how: Any,
) -> "Figure | None":
    """Draw means over seeds of columns of a record's points; the second one dashed."""

    def plot(axis: "Axes", group: list[Record], style: dict[str, Any]) -> None:
        found = [(record.points(name), record.seed) for record in group]
        points = pd.concat([p.assign(seed=seed) for p, seed in found if p is not None])
        # First over the clients of a seed, so that every seed weighs the same.
        seeds = points.groupby(["seed", x], as_index=False)[columns].mean()
        means = seeds.groupby(x)[columns].mean()
        for column, dashes in zip(columns, ("-", "--"), strict=False):
            axis.plot(means.index, means[column], **style | {"linestyle": dashes})

    known = _only(drawn, lambda record: record.points(name) is not None)
    return _draw(table, known, plot, across, **how) if known else None


def _only(drawn: Group, known: Callable[[Record], object]) -> Group:
    """Return the lines, and panels, of which at least one record has what is to be drawn."""
    found = {
        panel: {line: group for line, group in lines.items() if any(map(known, group))}
        for panel, lines in drawn.items()
    }
    return {panel: lines for panel, lines in found.items() if lines}


def _mean_curve(group: Sequence[Record], column: str = "val_accuracy") -> Values:
    """Return rounds, means of a column, half widths of their intervals (or 0), mean megabytes."""
    points = pd.DataFrame(
        [point for record in group for point in record.curve(column)],
        columns=["round", "moved", "value"],
    )
    rows = []
    for server_round, found in points.groupby("round"):
        if len(found) == len(group):  # else its mean would be over other seeds
            value = interval(found["value"].tolist())
            moved = np.mean(found["moved"].tolist())
            rows.append((server_round, value.mean, np.nan_to_num(value.half), moved))
    return np.array(rows, float).reshape(-1, 4).T


def _sparse(values: Values) -> int:
    """Return the number of points from one marker to the next."""
    return max(1, len(values) // 8)


def _draw(
    table: Table,
    drawn: Group,
    plot: Plot,
    across: str,
    *,
    label: str = "validation accuracy",
    shares: bool = True,
    note: str = "",
) -> "Figure":
    """Return a figure with a panel per entry, in which a line has the same style everywhere.

    Parameters
    ----------
    across, label : str
        Labels of the axes.
    shares : bool
        Whether the lines are shares, shown in percent, or losses.
    note : str
        A sentence above the legend.
    """
    figure, axes = panel_grid(
        len(drawn), panel=(3.2, 2.7), margin=(0.6, 0.9), least_width=4.6, sharey=True
    )
    planned = table.axes.get(table.report.get("lines", ""))
    labels = planned or dict.fromkeys(line for lines in drawn.values() for line in lines)
    styles = {label: line_style(number, label) for number, label in enumerate(labels)}
    for axis, (panel, lines) in zip(axes, drawn.items(), strict=True):
        axis.set_title(panel, fontsize="medium")
        axis.grid(alpha=0.3)
        axis.set_xlabel(across)
        if shares:
            show_percent(axis, "")
        for line, group in lines.items():
            plot(axis, group, styles[line])
    for axis in axes[::MOST_COLUMNS]:
        axis.set_ylabel(label)
    legend_below(figure, axes, 3 if len(axes) == 1 else 5, note, list(labels))
    if not shares:
        fit_losses(axes)
        return figure
    fit_lines(axes, 1.0)
    return figure


def line_style(number: int, label: str) -> dict[str, Any]:
    """Return colour, marker, width and label of the line of a number, from 0 up.

    Later lines are thinner, so that a line under another one can be seen at its sides.
    """
    share = min(number, 4) / 4  # 0 for the first line, 1 for the thinnest
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 5.2 - 2.2 * share,
        "linewidth": 2.3 - 1.2 * share,
        "linestyle": "-" if number < len(_COLOURS) else "--",
        "label": label,
    }
