"""Accuracy against rounds, bytes, and multiples of task vectors: means over seeds.

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
    legend_below,
    panel_grid,
    show_percent,
    use_logarithms,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = Callable[[str], dict[str, Any]]
Values = npt.NDArray[np.float64]

# Dark enough on white, told apart without colour vision (Okabe and Ito), and by marker.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C8C8C"
)  # fmt: skip
_MARKERS = "os^Dvp*X"


def curves(table: Table, drawn: Group) -> "Figure":
    """Draw validation accuracy against rounds: the mean of the seeds, and its 95 % interval."""
    figure, axes, style = _panels(table, drawn)
    for axis, lines in zip(axes, drawn.values(), strict=True):
        for line, group in lines.items():
            rounds, means, halves, _ = _mean_curve(group)
            axis.plot(rounds, means, **style(line), markevery=_sparse(rounds))
            axis.fill_between(
                rounds, means - halves, means + halves, color=style(line)["color"], alpha=0.15, lw=0
            )
        axis.set_xlabel("round")
    return _finish(figure, axes)


def against_bytes(table: Table, drawn: Group) -> "Figure | None":
    """Draw validation accuracy against what was moved so far, of head and calibration too.

    A panel without a federation has nothing to show.
    """
    drawn = {
        panel: lines
        for panel, lines in drawn.items()
        if any(record.megabytes for group in lines.values() for record in group)
    }
    if not drawn:
        return None
    figure, axes, style = _panels(table, drawn)
    for axis, lines in zip(axes, drawn.values(), strict=True):
        for line, group in lines.items():
            _, means, _, moved = _mean_curve(group)
            shown = moved > 0
            axis.plot(moved[shown], means[shown], **style(line), markevery=_sparse(moved[shown]))
        use_logarithms(axis)
        axis.set_xlabel("MB up and down")
    return _finish(figure, axes)


def scaled(table: Table, drawn: Group) -> "Figure | None":
    """Draw validation accuracy against the scale of the whole run's task vector."""
    return _by_points(
        table, drawn, "scaling", "scale", ["val_accuracy"], "scale of the task vector"
    )


def negated(table: Table, drawn: Group) -> "Figure | None":
    """Draw target (solid) and control accuracy (dashed) against how much was subtracted."""
    label = "length subtracted, of the run's own"
    return _by_points(table, drawn, "negation", "length", ["target", "control"], label)


def _by_points(
    table: Table, drawn: Group, name: str, x: str, columns: list[str], label: str
) -> "Figure | None":
    """Draw means over seeds of columns of a record's points; the second one dashed."""
    found = {
        panel: {
            line: points for line, group in lines.items() if len(points := _points(group, name))
        }
        for panel, lines in drawn.items()
    }
    found = {panel: lines for panel, lines in found.items() if lines}
    if not found:
        return None
    figure, axes, style = _panels(table, {panel: drawn[panel] for panel in found})
    for axis, lines in zip(axes, found.values(), strict=True):
        for line, points in lines.items():
            # First over the clients of a seed, so that every seed weighs the same.
            seeds = points.groupby(["seed", x], as_index=False)[columns].mean()
            means = seeds.groupby(x)[columns].mean()
            for column, dashes in zip(columns, ("-", "--"), strict=False):
                look = style(line) | {"linestyle": dashes}
                axis.plot(means.index, means[column], **look)
        axis.set_xlabel(label)
    return _finish(figure, axes)


def _points(group: Sequence[Record], name: str) -> pd.DataFrame:
    frames = [
        points.assign(seed=record.seed)
        for record in group
        if (points := record.points(name)) is not None
    ]
    return pd.concat(frames) if frames else pd.DataFrame()


def _mean_curve(group: Sequence[Record]) -> Values:
    """Return rounds, mean accuracies, half widths of their intervals (or 0) and mean megabytes."""
    columns = ["round", "moved", "accuracy"]
    points = pd.DataFrame([point for record in group for point in record.curve()], columns=columns)
    rows = []
    for server_round, found in points.groupby("round"):
        if len(found) == len(group):  # else its mean would be over other seeds
            accuracy = interval(found["accuracy"].tolist())
            moved = np.mean(found["moved"].tolist())
            rows.append((server_round, accuracy.mean, np.nan_to_num(accuracy.half), moved))
    return np.array(rows, float).reshape(-1, 4).T


def _sparse(values: Values) -> int:
    """Return every how many points a marker stands."""
    return max(1, len(values) // 8)


def _panels(table: Table, drawn: Group) -> "tuple[Figure, list[Axes], Style]":
    """Return a figure with a panel per entry, and the style of a line wherever it is drawn."""
    figure, axes = panel_grid(
        len(drawn), panel=(3.2, 2.7), margin=(0.6, 0.9), least_width=4.6, sharey=True
    )
    for axis, panel in zip(axes, drawn, strict=True):
        axis.set_title(panel, fontsize="medium")
        axis.grid(alpha=0.3)
        show_percent(axis, "")
    for axis in axes[::MOST_COLUMNS]:
        axis.set_ylabel("validation accuracy")
    labels = table.axes.get(table.report.get("lines", "")) or [
        line for lines in drawn.values() for line in lines
    ]
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}

    def style(line: str) -> dict[str, Any]:
        number = order[line]
        return {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "markersize": 3.5,
            "linewidth": 1.3,
            "linestyle": "-" if number < len(_COLOURS) else "--",
            "label": line,
        }

    return figure, axes, style


def _finish(figure: "Figure", axes: "Sequence[Axes]") -> "Figure":
    # Bands of few seeds are wide: the lines decide the scale.
    lines = [line for axis in axes for line in axis.lines]
    reach = np.concatenate([np.asarray(line.get_ydata(), float) for line in lines])
    if len(reach):
        low, high = float(reach.min()), float(reach.max())
        margin = 0.08 * max(high - low, 0.05)
        axes[0].set_ylim(max(0.0, low - margin), min(1.0, high + margin))
    legend_below(figure, axes, 3 if len(axes) == 1 else 5)
    return figure
