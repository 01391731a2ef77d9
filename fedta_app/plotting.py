"""Figures as all of fedta draws and writes them: one heat map, one legend, whole files.

A base room, like `fedta_app.files`: every package may import it, and it imports nothing but that.
matplotlib is imported when a figure is made, so a command that draws nothing does not wait for it.
No figure touches the state of pyplot.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedta_app.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Grid = npt.NDArray[np.float64]
Texts = Mapping[Any, str]  # (row, column) -> text of the cell

MOST_COLUMNS = 3  # panels in a row
_NO_VALUE = "0.88"  # the grey of a cell without a value
_LUMA = (0.299, 0.587, 0.114)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches, its parts laid out so that none overlap."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def image_bytes(figure: "Figure", kind: str = "png") -> bytes:
    """Return a figure as PNG or SVG ("svg"): the same bytes for the same figure, on any day."""
    from matplotlib import rc_context

    options: dict[str, dict[str, Any]] = {
        "png": {"dpi": 150, "metadata": {"Software": None}},
        "svg": {"metadata": {"Date": None, "Creator": None}},
    }
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "fedta"}):
        figure.savefig(stream, format=kind, **options[kind])
    return stream.getvalue()


def save_figure(path: Path, figure: "Figure") -> None:
    """Save a figure as the suffix of the path says, .png or .svg, atomically."""
    write_atomically(path, image_bytes(figure, path.suffix.removeprefix(".")))


@contextmanager
def two_panels(path: Path, title: str, across: str) -> Iterator[tuple["Axes", "Axes"]]:
    """Yield two panels to draw into; the figure is saved as PNG when the block ends.

    Parameters
    ----------
    across : str
        What both panels have on their horizontal axis.
    """
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    yield left, right
    for axis in (left, right):
        axis.set_xlabel(across)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False)
    figure.suptitle(title)
    save_figure(path, figure)


def panel_grid(
    number: int,
    *,
    panel: tuple[float, float],
    margin: tuple[float, float],
    least_width: float = 0.0,
    sharey: bool = False,
) -> tuple["Figure", list["Axes"]]:
    """Return a figure with so many panels, at most `MOST_COLUMNS` in a row, and the panels.

    Parameters
    ----------
    panel, margin : tuple of float
        Width and height in inches of a panel, and of what all of them share.
    """
    columns = min(MOST_COLUMNS, number)
    rows = -(-number // columns)
    width, height = panel[0] * columns + margin[0], panel[1] * rows + margin[1]
    figure = new_figure(max(least_width, width), height)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for axis in axes[number:]:
        axis.set_axis_off()
    return figure, axes[:number]


def draw_line(
    axis: "Axes", points: Sequence[tuple[float, float]], label: str, style: str = "-"
) -> None:
    """Draw a line through points (x, y), where there are any."""
    if points:
        axis.plot(*zip(*points, strict=True), style, label=label, markersize=3)


def show_percent(axis: "Axes", label: str) -> None:
    """Label a vertical axis of shares, in percent with as many digits as it takes."""
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
    axis.set_ylabel(label)


def use_logarithms(axis: "Axes") -> None:
    """Give the horizontal axis a logarithmic scale with plain numbers that do not collide."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axis.xaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def use_integers(axis: "Axis", most: int) -> None:
    """Put at most so many ticks on an axis, at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=most))


def legend_below(figure: "Figure", axes: Sequence["Axes"], columns: int = 1) -> None:
    """Put one legend for all axes below the figure, each label once."""
    entries: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", frameon=False,
        fontsize="small", ncols=min(len(entries), columns),
    )  # fmt: skip


def heat_map(
    axis: "Axes",
    grid: Grid,
    *,
    colours: str,
    limits: tuple[float | None, float | None] = (None, None),
    texts: Texts | None = None,
    square: bool = False,
) -> "AxesImage":
    """Draw a table of numbers as colours, and return what a colour bar needs.

    Parameters
    ----------
    grid : float array, shape (rows, columns)
        A cell that is NaN has no value, and is grey.
    colours : str
        A colour map of matplotlib.
    limits : tuple
        The values of its ends; None for the least and the largest of the grid.
    texts : mapping
        What is written into the cell (row, column): white where it is dark.
    square : bool
        Draw square cells in place of filling the axes.
    """
    axis.set_facecolor(_NO_VALUE)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    image = axis.imshow(
        grid, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest",
        aspect="equal" if square else "auto",
    )  # fmt: skip
    brightness = np.asarray(image.to_rgba(grid))[..., :3] @ _LUMA
    for (row, column), text in (texts or {}).items():
        colour = "white" if brightness[row, column] < 0.5 else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
    return image


def numbers(grid: Grid, digits: int) -> Texts:
    """Return the values of a grid as texts of its cells."""
    return {
        place: f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 takes the sign off -0.0
        for place, value in np.ndenumerate(grid)
        if np.isfinite(value)
    }


def name_cells(
    axis: "Axes", rows: Sequence[str], columns: Sequence[str], *, slanted: bool = False
) -> None:
    """Write the names of rows and columns beside a heat map; slanted where columns are narrow."""
    slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(len(columns)), columns, **(slant if slanted else {}))
    axis.set_yticks(range(len(rows)), rows)
