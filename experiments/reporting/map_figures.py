"""Heat maps of a table: accuracies over two axes, overlaps of masks, who holds which classes."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from experiments.reporting.intervals import interval
from experiments.reporting.records import Group, Record, partition_name
from experiments.running.presets import Table
from fedta_app.partition.figure import draw_counts
from fedta_app.plotting import Grid, heat_map, name_cells, new_figure, numbers, panel_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_MASKS = 12  # that fit on a page, each with each


def _by_axes(
    figure_of: Callable[[Record], float | None], what: str, digits: int, table: Table, drawn: Group
) -> "Figure | None":
    """Draw a figure of each cell, `lines` by `panels`, mean and 95 % interval over seeds."""
    there = dict.fromkeys(line for lines in drawn.values() for line in lines)
    order = table.axes.get(table.report.get("lines", ""), list(there))
    rows, columns = [line for line in order if line in there], list(drawn)
    grid = np.full((len(rows), len(columns)), math.nan)
    texts, widths = {}, []
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        values = [figure_of(record) for record in drawn[column].get(row, [])]
        if known := [value for value in values if value is not None]:
            found = interval(known)
            grid[i, j], texts[i, j] = found.mean, f"{found.mean:.{digits}f}"
            if not math.isnan(found.half):
                texts[i, j] += f"\n± {found.half:.{digits}f}"
                widths.append(2 * found.half)
    if not texts:
        return None
    figure = new_figure(1.9 + 0.95 * len(columns), 1.2 + 0.5 * len(rows))
    axis = figure.add_subplot()
    # Colours span an interval at least: what is within it shall not look like a finding.
    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    margin = max(0.0, float(np.median(widths or [0])) - (high - low)) / 2
    limits = (low - margin, high + margin)
    image = heat_map(axis, grid, colours="viridis", limits=limits, texts=texts)
    name_cells(axis, rows, columns)
    axis.set_xlabel(table.report.get("panels", ""))
    axis.set_ylabel(table.report.get("lines", ""))
    figure.colorbar(image, ax=axis, label=what)
    return figure


# Each is called with a table and what is drawn of it.
accuracies = partial(
    _by_axes, lambda record: 100 * record.final("test_accuracy"), "test accuracy, %", 1
)
cosines = partial(
    _by_axes, lambda record: record.task_figure("cosine"), "cosine of task vectors", 3
)
sign_conflicts = partial(
    _by_axes, lambda record: record.task_figure("sign-conflict"), "sign conflict", 3
)


def mask_overlap(table: Table, drawn: Group) -> "Figure | None":
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
    size = 1.3 + 0.42 * max(len(lines) for lines in masked.values())
    figure, axes = panel_grid(len(masked), panel=(size, size + 0.2), margin=(1.2, 0.0))
    grids = [_overlaps(lines) for lines in masked.values()]
    limits = (0.0, max(float(np.nanmax(grid)) for grid in grids))
    for axis, grid, (panel, lines) in zip(axes, grids, masked.items(), strict=True):
        texts = numbers(grid, 2)
        image = heat_map(axis, grid, colours="YlGnBu", limits=limits, texts=texts, square=True)
        name_cells(axis, list(lines), list(lines), slanted=True)
        axis.set_title(panel, fontsize="medium")
    figure.colorbar(image, ax=figure.axes, label="Jaccard index of masks", shrink=0.8)
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


def _jaccard(first: Record, second: Record) -> float:
    assert first.mask is not None and second.mask is not None
    either = int((first.mask | second.mask).sum())
    return int((first.mask & second.mask).sum()) / either if either else math.nan


def mask_density(table: Table, drawn: Group) -> "Figure | None":
    """Draw which share of each kind of layer is trained, a row per line, over panels and seeds.

    Kinds are those of `fedta_app.analysis.task_vectors.block_density`, over all blocks that have
    them. A model without kinds has its blocks in their place, which differ in size.
    """
    found: dict[str, list[pd.Series[float]]] = {}
    for line, group in (pair for lines in drawn.values() for pair in lines.items()):
        for record in group:
            if densities := record.summary.get("mask-density"):
                shares = pd.DataFrame(densities)  # a row per kind, a column per block
                if list(shares.index) == ["all"]:
                    shares = shares.T
                found.setdefault(line, []).append(shares.mean(axis=1))
    if not found:
        return None
    shares = pd.DataFrame(
        {line: pd.concat(rows, axis=1).mean(axis=1) for line, rows in found.items()}
    )
    grid = 100 * shares.T.to_numpy()
    figure = new_figure(2.4 + 0.62 * grid.shape[1], 1.5 + 0.4 * grid.shape[0])
    axis = figure.add_subplot()
    image = heat_map(axis, grid, colours="YlGnBu", limits=(0.0, None), texts=numbers(grid, 1))
    name_cells(axis, list(found), list(shares.index), slanted=True)
    axis.set_ylabel(table.report.get("lines", ""))
    figure.colorbar(image, ax=axis, label="trained entries, %")
    return figure


def client_classes(table: Table, drawn: Group) -> "Figure | None":
    """Draw who holds what, of the first seed: clients by classes, a panel per partition."""
    found: dict[str, npt.NDArray[np.int64]] = {}
    for record in (r for lines in drawn.values() for group in lines.values() for r in group):
        if record.classes is not None:
            found.setdefault(partition_name(record.config), record.classes)
    if not found:
        return None
    figure = new_figure(0.9 + 2.3 * len(found), 2.9)
    axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    top = max(int(counts.max()) for counts in found.values())
    for axis, (label, counts) in zip(axes, found.items(), strict=True):
        image = draw_counts(axis, counts, most_ticks=6, top=top)
        axis.set_title(label, fontsize="medium")
    axes[0].set_ylabel("client")
    figure.colorbar(image, ax=list(axes), label="images")
    return figure
