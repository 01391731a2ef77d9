"""Parts that the figures of all packages share.

matplotlib is imported when a figure is made, so that commands without figures start quickly. The
state of pyplot is never used.
"""

import io
import textwrap
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
Texts = Mapping[Any, str]  # text by (row, column)

MOST_COLUMNS = 3  # panels in a row
_NO_VALUE = "0.88"  # the grey of a cell without a value
_LUMA = (0.299, 0.587, 0.114)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, sized in inches, with a layout that avoids overlaps."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def image_bytes(figure: "Figure", kind: str = "png") -> bytes:
    """Return a figure as "png" or "svg"; equal figures give equal bytes, without a date."""
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
    """Save a figure atomically, as PNG or SVG by the suffix of the path."""
    write_atomically(path, image_bytes(figure, path.suffix.removeprefix(".")))


@contextmanager
def two_panels(
    path: Path, title: str, across: str, note: str = ""
) -> Iterator[tuple["Axes", "Axes"]]:
    """Yield two panels to draw into, and save the figure when the block ends.

    Parameters
    ----------
    across : str
        Label of both horizontal axes.
    note : str
        A sentence below the panels.
    """
    figure = new_figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    yield left, right
    for axis in (left, right):
        axis.set_xlabel(across)
        axis.grid(alpha=0.3)
        if axis.lines:  # above the panel, where no line is
            axis.legend(
                loc="lower left", bbox_to_anchor=(0, 1), ncols=len(axis.lines), frameon=False,
                fontsize="small", borderaxespad=0,
            )  # fmt: skip
    figure.suptitle(title)
    if note:
        figure.supxlabel(note, fontsize="small", color="0.35")
    save_figure(path, figure)


def panel_grid(
    number: int,
    *,
    panel: tuple[float, float],
    margin: tuple[float, float],
    least_width: float = 0.0,
    sharey: bool = False,
) -> tuple["Figure", list["Axes"]]:
    """Return a figure with `number` panels, at most `MOST_COLUMNS` in a row, and the panels.

    Parameters
    ----------
    panel, margin : tuple of float
        Width and height in inches of a panel, and of the space outside the panels.
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
    """Draw a line through points (x, y); no points give no line."""
    if points:
        axis.plot(*zip(*points, strict=True), style, label=label, markersize=3)


def show_percent(axis: "Axes", label: str) -> None:
    """Label a vertical axis of shares, and show its ticks in percent."""
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
    axis.set_ylabel(label)


def use_logarithms(axis: "Axes") -> None:
    """Make the horizontal axis logarithmic, with plain numbers that do not overlap."""
    axis.set_xscale("log")
    _number_decades(axis.xaxis, axis.get_xlim(), 6)


def _number_decades(axis: "Axis", limits: tuple[float, float], most: int) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    subs = (1.0, 2.0, 5.0) if limits[1] < 100 * limits[0] else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=most))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def fit_losses(axes: Sequence["Axes"]) -> None:
    """Fit the vertical axes of panels to the losses of all their lines, not to bands around them.

    The axes are logarithmic where the losses span more than a factor of ten.
    """
    heights = np.concatenate([_heights(axis) for axis in axes])
    if not len(heights):
        return
    low, high = float(heights.min()), float(heights.max())
    logarithmic = 0 < 10 * low < high
    if logarithmic:
        margin = (high / low) ** 0.05
        limits = (low / margin, high * margin)
    else:
        margin = 0.05 * max(high - low, 0.05)
        limits = (max(0.0, low - margin), high + margin)
    for axis in axes:
        axis.set_yscale("log" if logarithmic else "linear")
        axis.set_ylim(*limits)
        if logarithmic:
            _number_decades(axis.yaxis, limits, 9)


def fit_shares(axis: "Axes") -> None:
    """Set the limits of a vertical axis of shares so that what comes after the start is seen.

    Where the lines rise steeply at first, as from chance to a few percent below the end, all that
    follows would be a flat line at the top. Then the last three quarters of the horizontal axis
    get 40 % of the height, and a note names the lowest point below the axis. No axis is shorter
    than five percent points, so that single images are no cliffs.
    """
    heights = _heights(axis)
    if not len(heights):
        return
    left, right = axis.dataLim.intervalx
    later = _heights(axis, first=left + 0.25 * (right - left))
    low, high = float(heights.min()), float(heights.max())
    bottom = max(low, high - 2.5 * max(high - float(later.min(initial=high)), 0.02))
    margin = max(0.05 * (high - bottom), (0.05 - (high - bottom)) / 2)
    axis.set_ylim(max(0.0, bottom - margin), min(1.0, high + margin))
    if low < bottom - margin:
        axis.text(
            0.98, 0.02, f"lowest: {low:.1%}, below the axis", transform=axis.transAxes, ha="right",
            fontsize="small", color="0.35",
        )  # fmt: skip


def fit_lines(axes: Sequence["Axes"], highest: float) -> None:
    """Set the limits of the vertical axis of these panels, which they share, to those of the lines.

    The bands around lines do not count: those of few seeds are wide.
    """
    heights = np.concatenate([_heights(axis) for axis in axes])
    if len(heights):
        low, high = float(heights.min()), float(heights.max())
        margin = 0.08 * max(high - low, 0.05)
        axes[0].set_ylim(max(0.0, low - margin), min(highest, high + margin))


def _heights(axis: "Axes", first: float = -np.inf) -> npt.NDArray[np.float64]:
    """Return the finite heights of all lines of a panel, from a place on the horizontal axis on."""
    lines = [np.asarray(line.get_xydata(), float) for line in axis.lines]
    points = np.concatenate([np.empty((0, 2)), *lines])
    heights: npt.NDArray[np.float64] = points[points[:, 0] >= first, 1]
    return heights[np.isfinite(heights)]


def use_integers(axis: "Axis", most: int) -> None:
    """Put ticks on an axis, at whole numbers and about `most` of them."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=most))


def legend_below(
    figure: "Figure",
    axes: Sequence["Axes"],
    columns: int = 1,
    note: str = "",
    order: Sequence[str] = (),
) -> None:
    """Put one legend for all axes below the figure, with each label once, under a note.

    Labels are in this order, and others after them as they come.
    """
    entries: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    first = [label for label in order if label in entries]
    entries = {label: entries[label] for label in dict.fromkeys([*first, *entries])}
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", frameon=False,
        fontsize="small", ncols=min(len(entries), columns),
        title=textwrap.fill(note, int(15 * figure.get_figwidth())), title_fontsize="small",
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
    """Draw a table of numbers as colours, and return the image, for a colour bar.

    Parameters
    ----------
    grid : float array, shape (rows, columns)
        Cells that are NaN are grey.
    colours : str
        A colour map of matplotlib.
    limits : tuple
        Values at the ends of the colour map; None for the minimum and maximum of the grid.
    texts : mapping
        Texts of cells by (row, column), white on dark cells.
    square : bool
        Whether cells are square; otherwise they fill the axes.
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
    """Return the values of a grid as texts for `heat_map`."""
    return {
        place: f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 takes the sign off -0.0
        for place, value in np.ndenumerate(grid)
        if np.isfinite(value)
    }


def name_cells(
    axis: "Axes", rows: Sequence[str], columns: Sequence[str], *, slanted: bool = False
) -> None:
    """Write the names of rows and columns beside a heat map, on request with slanted columns."""
    slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(len(columns)), columns, **(slant if slanted else {}))
    axis.set_yticks(range(len(rows)), rows)
