"""Heat maps of the task vectors and masks of clients, with their numbers as CSV.

Diagonals are left out, since they are 1 or 0 by definition and would dominate the colour scale.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from fedta_app.analysis.matrices import MaskOverlap
from fedta_app.files import write_atomically
from fedta_app.plotting import Grid, heat_map, name_cells, new_figure, numbers, save_figure

_MOST_NUMBERS = 12  # rows or columns; with more, numbers do not fit their cells
_MOST_TICKS = 20


def save_cosine_matrix(path: Path, matrix: Tensor, labels: Sequence[str]) -> None:
    """Save cosines (n, n) of task vectors as PNG; positive is blue, negative red."""
    grid = _off_diagonal(matrix)
    reach = _largest(abs(grid))
    _save_square(path, grid, labels, "Cosine of task vectors", "RdBu", (-reach, reach))


def save_sign_conflict_matrix(path: Path, matrix: Tensor, labels: Sequence[str]) -> None:
    """Save shares of conflicting signs (n, n) as PNG; below chance is blue, above it red."""
    grid = _off_diagonal(matrix)
    reach = _largest(abs(grid - 0.5))
    limits = (0.5 - reach, 0.5 + reach)
    _save_square(path, grid, labels, "Sign conflict (chance: 0.50)", "RdBu_r", limits)


def save_mask_overlap_matrix(path: Path, overlap: MaskOverlap, labels: Sequence[str]) -> None:
    """Save the Jaccard indices of masks as PNG, with chance in the title and on the scale."""
    grid = _off_diagonal(overlap.jaccard)
    title = f"Mask overlap, Jaccard (chance: {overlap.chance:.3g})"
    top = _largest(np.append(grid, overlap.chance))
    _save_square(path, grid, labels, title, "YlGnBu", (0.0, top), overlap.chance)


def save_block_density(path: Path, density: Mapping[str, Mapping[str, float]]) -> None:
    """Save the table of `fedta_app.analysis.block_density` as PNG."""
    kinds = list(dict.fromkeys(kind for row in density.values() for kind in row))
    grid = 100 * np.array([[row.get(kind, np.nan) for kind in kinds] for row in density.values()])
    figure = new_figure(1.7 + 0.52 * max(3, len(kinds)), 1.4 + 0.27 * len(density))
    axis = figure.add_subplot()
    texts = numbers(grid, 1) if len(kinds) <= _MOST_NUMBERS else {}
    image = heat_map(axis, grid, colours="YlGnBu", limits=(0.0, _largest(grid)), texts=texts)
    name_cells(axis, list(density), kinds, slanted=True)
    axis.set_title("Density: trained entries, %", fontsize="medium")
    figure.colorbar(image, ax=axis)
    save_figure(path, figure)


def _save_square(
    path: Path,
    grid: Grid,
    labels: Sequence[str],
    title: str,
    colours: str,
    limits: tuple[float, float],
    mark: float | None = None,
) -> None:
    """Save a heat map of clients by clients, `mark` a line on its colour bar, and a CSV file."""
    figure = new_figure(5.2, 4.4)
    axis = figure.add_subplot()
    texts = numbers(grid, 2) if len(grid) <= _MOST_NUMBERS else {}
    image = heat_map(axis, grid, colours=colours, limits=limits, texts=texts, square=True)
    shown = range(0, len(grid), -(-len(grid) // _MOST_TICKS))
    names = [labels[number] for number in shown]
    axis.set_xticks(shown, names, rotation=90 if max(map(len, names)) > 3 else 0)
    axis.set_yticks(shown, names)
    axis.set_xlabel("client")
    axis.set_ylabel("client")
    axis.set_title(title, fontsize="medium")
    bar = figure.colorbar(image, ax=axis)
    if mark is not None:
        bar.ax.axhline(mark, color="black", linewidth=1.2)
    save_figure(path, figure)
    lines = (",".join("" if value != value else f"{value:.6g}" for value in row) for row in grid)
    write_atomically(path.with_suffix(".csv"), "\n".join(lines) + "\n")


def _off_diagonal(matrix: Tensor) -> Grid:
    grid: Grid = matrix.double().cpu().numpy().copy()
    np.fill_diagonal(grid, np.nan)
    return grid


def _largest(values: Grid) -> float:
    """Return the largest value that is not NaN, at least 0.01."""
    return float(np.nanmax(np.append(values, 0.01)))
