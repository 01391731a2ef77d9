"""A heat map of the samples of each client and class."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedta_app.plotting import new_figure, save_figure, use_integers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

MAX_ROWS = 200  # more clients cannot be told apart on a page


def save_partition_figure(path: Path, counts: npt.NDArray[np.int64]) -> None:
    """Save a heat map of the samples of each client and class as PNG.

    Parameters
    ----------
    counts : int array, shape (K, C)
        What `fedta_app.partition.class_counts` returns. If there are more than 200 clients, 200
        evenly spaced ones are shown, and the title says so.
    """
    num_clients, num_classes = counts.shape
    shown = np.linspace(0, num_clients - 1, min(num_clients, MAX_ROWS)).round().astype(np.int64)
    width = 2.0 + min(max(0.1 * num_classes, 3.0), 9.0)
    height = 1.3 + min(max(0.1 * len(shown), 1.5), 7.0)
    figure = new_figure(width, height)
    axis = figure.add_subplot()
    image = draw_counts(axis, counts[shown], most_ticks=11)
    who = f"{num_clients:,} clients"
    if len(shown) < num_clients:
        rows = np.linspace(0, len(shown) - 1, 9).round().astype(np.int64)
        axis.set_yticks(rows, [f"{client:,}" for client in shown[rows]])
        who = f"{len(shown):,} of {who}, evenly spaced"
    axis.set_ylabel("client")
    axis.set_title(f"Samples per client and class\n{who}", fontsize="medium")
    bar = figure.colorbar(image, ax=axis, label="samples")
    use_integers(bar.ax.yaxis, 5)
    save_figure(path, figure)


def draw_counts(
    axis: "Axes", counts: npt.NDArray[np.int64], *, most_ticks: int, top: int | None = None
) -> "AxesImage":
    """Draw samples by client and class, white where a client has none of a class.

    Parameters
    ----------
    top : int
        The count at the end of the colour scale; by default the largest.
    """
    image = axis.imshow(
        np.ma.masked_equal(counts, 0), aspect="auto", cmap="viridis_r", vmin=0, vmax=top,
        interpolation="nearest",  # other methods blur small cells
    )  # fmt: skip
    axis.set_xlabel("class")
    use_integers(axis.xaxis, most_ticks)
    use_integers(axis.yaxis, most_ticks)
    return image
