"""Task vectors and masks of clients as heat maps, sized for a page, with their numbers as CSV.

Diagonals are left out: they are 1 or 0 by definition and would use up the colour scale. A value
that does not exist (NaN) is drawn as the background.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from fedta_app.analysis.matrices import MaskOverlap
from fedta_app.files import write_atomically

Grid = npt.NDArray[np.float64]

_MOST_ANNOTATED = 12  # rows or columns; beyond, numbers do not fit their cells
_MOST_TICKS = 20
_BACKGROUND = "0.88"


def save_cosine_matrix(path: Path, matrix: Tensor, labels: Sequence[str] | None = None) -> None:
    """Save the cosines between task vectors, shape (n, n), as PNG; blue agrees, red opposes."""
    grid = _off_diagonal(matrix)
    reach = _largest(abs(grid), 0.01)
    _save_square(path, grid, labels, "Cosine of task vectors", "RdBu", (-reach, reach))


def save_sign_conflict_matrix(
    path: Path, matrix: Tensor, labels: Sequence[str] | None = None
) -> None:
    """Save the shares of conflicting signs, shape (n, n), as PNG; blue agrees, red conflicts."""
    grid = _off_diagonal(matrix)
    reach = _largest(abs(grid - 0.5), 0.01)
    limits = (0.5 - reach, 0.5 + reach)
    _save_square(path, grid, labels, "Sign conflict (chance: 0.50)", "RdBu_r", limits)


def save_mask_overlap_matrix(
    path: Path, overlap: MaskOverlap, labels: Sequence[str] | None = None
) -> None:
    """Save the Jaccard indices of the masks as PNG, chance in the title and marked on the scale."""
    grid = _off_diagonal(overlap.jaccard)
    title = f"Mask overlap, Jaccard (chance: {overlap.chance:.3g})"
    top = _largest(np.append(grid, overlap.chance), 0.01)
    _save_square(path, grid, labels, title, "YlGnBu", (0.0, top), overlap.chance)


def save_block_density(path: Path, density: Mapping[str, Mapping[str, float]]) -> None:
    """Save the table of `fedta_app.analysis.block_density` as PNG."""
    kinds = list(dict.fromkeys(kind for row in density.values() for kind in row))
    grid = 100 * np.array([[row.get(kind, np.nan) for kind in kinds] for row in density.values()])
    figure = Figure(
        figsize=(1.7 + 0.52 * max(3, len(kinds)), 1.4 + 0.27 * len(density)), layout="constrained"
    )
    axis = figure.add_subplot()
    image = _heat_map(axis, grid, "YlGnBu", (0.0, _largest(grid, 0.01)))
    axis.set_aspect("auto")
    axis.set_xticks(range(len(kinds)), kinds, rotation=40, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(density)), list(density))
    if len(kinds) <= _MOST_ANNOTATED:
        _annotate(axis, image, grid, digits=1)
    _finish(path, figure, image, "Density: trained entries, %")


def _save_square(
    path: Path,
    grid: Grid,
    labels: Sequence[str] | None,
    title: str,
    colours: str,
    limits: tuple[float, float],
    mark: float | None = None,
) -> None:
    number = len(grid)
    if labels is not None and len(labels) != number:
        raise ValueError(f"labels has {len(labels)} entries; it must have one per row, {number}")
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    axis = figure.add_subplot()
    image = _heat_map(axis, grid, colours, limits)
    step = -(-number // _MOST_TICKS)
    names = list(labels or map(str, range(number)))[::step]
    crowded = max(map(len, names)) > 3
    axis.set_xticks(range(0, number, step), names, rotation=90 if crowded else 0)
    axis.set_yticks(range(0, number, step), names)
    if labels is None:
        axis.set_xlabel("client")
        axis.set_ylabel("client")
    if number <= _MOST_ANNOTATED:
        _annotate(axis, image, grid)
    _finish(path, figure, image, title, mark)
    lines = (",".join("" if value != value else f"{value:.6g}" for value in row) for row in grid)
    write_atomically(path.with_suffix(".csv"), "\n".join(lines) + "\n")


def _heat_map(axis: Axes, grid: Grid, colours: str, limits: tuple[float, float]) -> AxesImage:
    axis.set_facecolor(_BACKGROUND)
    axis.tick_params(length=0, labelsize=8)
    axis.spines[:].set_visible(False)
    low, high = limits
    return axis.imshow(grid, cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def _annotate(axis: Axes, image: AxesImage, grid: Grid, digits: int = 2) -> None:
    brightness = np.asarray(image.to_rgba(grid))[..., :3] @ (0.299, 0.587, 0.114)
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = brightness[row, column] < 0.5
            text = f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 takes the sign off -0.0
            axis.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )


def _finish(
    path: Path, figure: Figure, image: AxesImage, title: str, mark: float | None = None
) -> None:
    FigureCanvasAgg(figure)
    bar = figure.colorbar(image, ax=image.axes)
    if mark is not None:
        bar.ax.axhline(mark, color="black", linewidth=1.2)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    image.axes.set_title(title, fontsize=10)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=200)
    temporary.replace(path)


def _off_diagonal(matrix: Tensor) -> Grid:
    grid: Grid = matrix.double().cpu().numpy().copy()
    np.fill_diagonal(grid, np.nan)
    return grid


def _largest(values: Grid, at_least: float) -> float:
    finite = values[np.isfinite(values)]
    return max(at_least, float(finite.max())) if finite.size else at_least
