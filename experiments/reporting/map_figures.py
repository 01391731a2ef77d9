"""Heat maps of a table: accuracies over two axes, overlaps of masks, who holds which classes."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from experiments.reporting.intervals import interval
from experiments.reporting.records import Group, Record
from experiments.running.presets import Table

_MOST_MASKS = 12  # that fit on a page, each with each
_MOST_COLUMNS = 3
Grid = npt.NDArray[np.float64]


def heat_map(table: Table, drawn: Group) -> Figure | None:
    """Draw final test accuracy, `lines` by `panels`, with its interval in each cell."""
    return _by_axes(
        table, drawn, lambda record: 100 * record.final("test_accuracy"), "test accuracy, %", 1
    )


def cosines(table: Table, drawn: Group) -> Figure | None:
    """Draw the mean cosine between clients' task vectors of the last round."""
    return _by_axes(
        table, drawn, lambda record: record.task_figure("cosine"), "cosine of task vectors", 3
    )


def sign_conflicts(table: Table, drawn: Group) -> Figure | None:
    """Draw the mean share of conflicting signs of clients' task vectors of the last round."""
    return _by_axes(
        table, drawn, lambda record: record.task_figure("sign-conflict"), "sign conflict", 3
    )


def _by_axes(
    table: Table, drawn: Group, figure_of: Callable[[Record], float | None], what: str, digits: int
) -> Figure | None:
    """Draw a figure of each cell, `lines` by `panels`, mean and 95 % interval over seeds."""
    rows, columns = list(dict.fromkeys(line for p in drawn.values() for line in p)), list(drawn)
    grid = np.full((len(rows), len(columns)), math.nan)
    texts, widths = {}, []
    for place in itertools.product(range(len(rows)), range(len(columns))):
        group = drawn[columns[place[1]]].get(rows[place[0]], [])
        values = [value for record in group if (value := figure_of(record)) is not None]
        if values:
            found = interval(values)
            grid[place], texts[place] = found.mean, f"{found.mean:.{digits}f}"
            if not math.isnan(found.half):
                texts[place] += f"\n± {found.half:.{digits}f}"
                widths.append(2 * found.half)
    if not texts:
        return None
    figure = Figure(
        figsize=(1.9 + 0.95 * len(columns), 1.2 + 0.5 * len(rows)), layout="constrained"
    )
    axis = figure.add_subplot()
    axis.set_facecolor("0.88")
    # Colours span an interval at least: what is within it shall not look like a finding.
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    margin = max(0.0, float(np.median(widths or [0])) - (high - low)) / 2
    image = axis.imshow(
        grid, vmin=low - margin, vmax=high + margin, cmap="viridis", aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    _annotate(axis, image, grid, texts)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xlabel(table.report.get("panels", ""))
    axis.set_ylabel(table.report.get("lines", ""))
    figure.colorbar(image, ax=axis, label=what)
    return figure


def mask_overlap(table: Table, drawn: Group) -> Figure | None:
    """Draw the Jaccard index of masks with the same seed, mean over seeds.

    Every preset with every other where they fit on a page; else lines with lines, by panel.
    """
    everything = {
        f"{line} {panel}".strip(): group
        for panel, lines in drawn.items()
        for line, group in lines.items()
    }
    panels = {"": everything} if len(everything) <= _MOST_MASKS else drawn
    masked = {panel: _masked(lines) for panel, lines in panels.items()}
    masked = {panel: lines for panel, lines in masked.items() if len(lines) > 1}
    if not masked:
        return None
    columns = min(_MOST_COLUMNS, len(masked))
    rows = -(-len(masked) // columns)
    size = 1.3 + 0.42 * max(len(lines) for lines in masked.values())
    figure = Figure(figsize=(size * columns + 1.2, (size + 0.2) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    grids = {panel: _overlaps(lines) for panel, lines in masked.items()}
    top = max(float(np.nanmax(grid)) for grid in grids.values())
    for axis in list(axes.flat)[len(masked) :]:
        axis.set_axis_off()
    for axis, (panel, lines) in zip(axes.flat, masked.items(), strict=False):
        axis.set_facecolor("0.88")
        grid = grids[panel]
        image = axis.imshow(grid, cmap="YlGnBu", vmin=0, vmax=top, interpolation="nearest")
        texts = {place: f"{value:.2f}" for place, value in np.ndenumerate(grid) if value == value}
        _annotate(axis, image, grid, texts)
        names = list(lines)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(names)), names)
        axis.set_title(panel, fontsize="medium")
    figure.colorbar(image, ax=list(axes.flat), label="Jaccard index of masks", shrink=0.8)
    return figure


def _masked(lines: dict[str, list[Record]]) -> dict[str, list[Record]]:
    kept = {line: [r for r in group if r.mask is not None] for line, group in lines.items()}
    return {line: group for line, group in kept.items() if group}


def _overlaps(lines: dict[str, list[Record]]) -> Grid:
    grid = np.full((len(lines), len(lines)), math.nan)
    for (i, one), (j, other) in itertools.permutations(enumerate(lines.values()), 2):
        pairs = [(a, b) for a, b in itertools.product(one, other) if a.seed == b.seed]
        if pairs:
            grid[i, j] = np.mean([_jaccard(first, second) for first, second in pairs])
    return grid


def mask_density(table: Table, drawn: Group) -> Figure | None:
    """Draw which share of each kind of layer is trained, a row per line, over panels and seeds.

    Kinds are those of `fedta_app.analysis.task_vectors.block_density`, over all blocks that have
    them.
    """
    found: dict[str, list[pd.Series[float]]] = {}
    for line, record in (
        (line, record) for lines in drawn.values() for line, group in lines.items()
        for record in group
    ):  # fmt: skip
        if densities := record.summary.get("mask-density"):
            found.setdefault(line, []).append(pd.DataFrame(densities).mean(axis=1))
    if not found:
        return None
    shares = pd.DataFrame(
        {line: pd.concat(rows, axis=1).mean(axis=1) for line, rows in found.items()}
    )
    grid = 100 * shares.T.to_numpy()
    figure = Figure(
        figsize=(2.4 + 0.62 * grid.shape[1], 1.5 + 0.4 * grid.shape[0]), layout="constrained"
    )
    axis = figure.add_subplot()
    axis.set_facecolor("0.88")
    image = axis.imshow(grid, cmap="YlGnBu", aspect="auto", interpolation="nearest", vmin=0)
    texts = {place: f"{value:.1f}" for place, value in np.ndenumerate(grid)}
    _annotate(axis, image, grid, texts)
    kinds = list(shares.index)
    axis.set_xticks(range(len(kinds)), kinds, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylabel(table.report.get("lines", ""))
    figure.colorbar(image, ax=axis, label="trained entries, %")
    return figure


def client_classes(table: Table, drawn: Group) -> Figure | None:
    """Draw who holds what, of the first seed: clients by classes, a panel per partition."""
    found: dict[str, npt.NDArray[np.int64]] = {}
    for record in (r for lines in drawn.values() for group in lines.values() for r in group):
        if record.classes is not None:
            config = record.config
            label = config.partition
            if label == "classes":
                number = config.num_classes_per_client
                label = f"{number} class{'es' * (number > 1)} per client"
            elif label == "dirichlet":
                label = f"Dirichlet({config.dirichlet_alpha:g})"
            found.setdefault(label, record.classes)
    if not found:
        return None
    figure = Figure(figsize=(0.9 + 2.3 * len(found), 2.9), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    top = max(int(counts.max()) for counts in found.values())
    for axis, (label, counts) in zip(axes, found.items(), strict=True):
        image = axis.imshow(
            np.ma.masked_equal(counts, 0), aspect="auto", cmap="viridis_r", vmin=0, vmax=top,
            interpolation="nearest",
        )  # fmt: skip
        axis.set_title(label, fontsize="medium")
        axis.set_xlabel("class")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes[0].set_ylabel("client")
    figure.colorbar(image, ax=list(axes), label="images")
    return figure


def _annotate(axis: Axes, image: AxesImage, grid: Grid, texts: dict[Any, str]) -> None:
    """Write into cells, white on dark and black on light, and take away what frames them."""
    brightness = np.asarray(image.to_rgba(grid))[..., :3] @ (0.299, 0.587, 0.114)
    for (row, column), text in texts.items():
        colour = "white" if brightness[row, column] < 0.5 else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _jaccard(first: Record, second: Record) -> float:
    assert first.mask is not None and second.mask is not None
    either = int((first.mask | second.mask).sum())
    return int((first.mask & second.mask).sum()) / either if either else math.nan
