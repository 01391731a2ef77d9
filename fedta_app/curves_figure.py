"""Loss and accuracy against rounds, as one picture."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from fedta_app.metrics import Row


def save_curves(path: Path, rows: list[Row], title: str) -> None:
    """Save accuracy (validation, test) and loss (training, test) of the training rounds as PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, loss = figure.subplots(1, 2)
    trained = [row for row in rows if row.phase in ("start", "train")]
    _line(accuracy, trained, "val_accuracy", "validation", "o-")
    _line(accuracy, trained, "test_accuracy", "test", "s-")
    _line(loss, trained, "train_loss", "training (sampled clients)", "-")
    _line(loss, trained, "test_loss", "test", "s-")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.set_ylabel("accuracy")
    loss.set_ylabel("cross-entropy")
    for axis in (accuracy, loss):
        axis.set_xlabel("round")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False)
    figure.suptitle(title)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)


def _line(axis: Axes, rows: list[Row], column: str, label: str, style: str) -> None:
    points = [(row.round, value) for row in rows if (value := getattr(row, column)) is not None]
    if points:
        axis.plot(*zip(*points, strict=True), style, label=label, markersize=3)
