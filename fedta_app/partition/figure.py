"""A picture of who holds what: clients x classes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

MAX_ROWS = 200  # clients that can still be told apart on a page


def save_partition_figure(path: str | Path, counts: npt.NDArray[np.int64]) -> None:
    """Save a heat map of the samples of every client and class as a PNG.

    Parameters
    ----------
    path : str or Path
        File to write; its directory exists.
    counts : int array, shape (K, C)
        Samples of each class that each client holds (`fedta_app.partition.class_counts`). Of more
        than 200 clients, 200 evenly spaced ones are shown, and the title says so.

    Raises
    ------
    ValueError
        If `counts` is not a table with at least one client and one class.
    """
    if counts.ndim != 2 or counts.size == 0:
        raise ValueError(f"counts must have shape (clients, classes), got {counts.shape}")
    num_clients, num_classes = counts.shape
    shown = np.unique(np.linspace(0, num_clients - 1, min(num_clients, MAX_ROWS)).round())
    clients = shown.astype(np.int64)
    figure = Figure(figsize=_size(len(clients), num_classes), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = np.ma.masked_equal(counts[clients], 0)  # nothing held: left white
    # "auto" interpolation smooths cells away when there are many
    image = axes.imshow(picture, aspect="auto", cmap="viridis_r", vmin=0, interpolation="nearest")
    _label_axes(figure, clients, num_clients)
    figure.colorbar(image, ax=axes, label="samples", ticks=MaxNLocator(nbins=5, integer=True))
    figure.savefig(path, format="png")


def _size(num_rows: int, num_columns: int) -> tuple[float, float]:
    """Return the width and height of the figure in inches, cells neither tiny nor huge."""
    width = 2.0 + min(max(0.1 * num_columns, 3.0), 9.0)
    height = 1.3 + min(max(0.1 * num_rows, 1.5), 7.0)
    return width, height


def _label_axes(figure: Figure, clients: npt.NDArray[np.int64], num_clients: int) -> None:
    """Name the axes, number the clients shown, and write the title."""
    axes = figure.axes[0]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=11))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=11))
    axes.set_xlabel("class")
    axes.set_ylabel("client")
    who = f"{num_clients:,} clients"
    if len(clients) < num_clients:
        rows = np.linspace(0, len(clients) - 1, 9).round().astype(np.int64)
        axes.set_yticks(rows, [f"{client:,}" for client in clients[rows]])
        who = f"{len(clients):,} of {who}, evenly spaced"
    axes.set_title(f"Samples per client and class\n{who}", fontsize="medium")
