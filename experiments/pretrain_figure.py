"""Loss and nearest-neighbour accuracy of a pre-training run against its epochs."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

_LABELS = {
    "loss": "loss",
    "entropy": "entropy of the teacher's outputs",
    "spread": "entropy of their mean over a batch",
}


def save_curve(path: Path, rows: list[dict[str, float]], title: str) -> None:
    """Save loss (DINO: and what would show a collapse) and k-NN accuracy as PNG.

    Parameters
    ----------
    path : Path
    rows : list of dict
        As `experiments.pretraining.Training.rows`; a column that a row lacks is left out.
    title : str
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    for column, label in _LABELS.items():
        _line(loss, rows, column, label, "-")
    _line(accuracy, rows, "knn", "CIFAR-10, 20-NN", "o-")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.set_ylabel("accuracy of frozen features")
    loss.set_ylabel("nats")
    for axis in (loss, accuracy):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False)
    figure.suptitle(title)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)


def _line(axis: Axes, rows: list[dict[str, float]], column: str, label: str, style: str) -> None:
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    if points:
        axis.plot(*zip(*points, strict=True), style, label=label, markersize=3)
