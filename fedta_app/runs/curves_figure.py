"""The figure of a run's accuracy and loss over its rounds."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedta_app.plotting import draw_line, show_percent, two_panels
from fedta_app.runs.metrics import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_curves(path: Path, rows: list[Row], title: str) -> None:
    """Save accuracy (validation, test) and loss (training, test) of the training rounds as PNG."""
    trained = [row for row in rows if row.phase in ("start", "train")]

    def line(axis: "Axes", column: str, label: str, style: str) -> None:
        points = [(row.round, getattr(row, column)) for row in trained]
        draw_line(axis, [point for point in points if point[1] is not None], label, style)

    with two_panels(path, title, across="round") as (accuracy, loss):
        line(accuracy, "val_accuracy", "validation", "o-")
        line(accuracy, "test_accuracy", "test", "s-")
        line(loss, "train_loss", "training (sampled clients)", "-")
        line(loss, "test_loss", "test", "s-")
        show_percent(accuracy, "accuracy")
        loss.set_ylabel("cross-entropy")
