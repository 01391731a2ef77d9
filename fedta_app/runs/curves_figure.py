"""Loss and accuracy against rounds, or anything else against anything, as one picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedta_app.runs.metrics import Row


def save_curves(path: Path, rows: list[Row], title: str) -> None:
    """Save accuracy (validation, test) and loss (training, test) of the training rounds as PNG."""
    trained = [row for row in rows if row.phase in ("start", "train")]

    def line(axis: Axes, column: str, label: str, style: str) -> None:
        values = [(row.round, getattr(row, column)) for row in trained]
        draw_line(axis, [point for point in values if point[1] is not None], label, style)

    def draw(accuracy: Axes, loss: Axes) -> None:
        line(accuracy, "val_accuracy", "validation", "o-")
        line(accuracy, "test_accuracy", "test", "s-")
        line(loss, "train_loss", "training (sampled clients)", "-")
        line(loss, "test_loss", "test", "s-")
        show_percent(accuracy, "accuracy")
        loss.set_ylabel("cross-entropy")

    save_panels(path, draw, title=title, across="round")


def save_panels(path: Path, draw: Callable[[Axes, Axes], None], *, title: str, across: str) -> None:
    """Save what is drawn into two panels side by side as PNG; the file is the old one or the new.

    Parameters
    ----------
    draw : callable
        Receives the left and the right panel.
    across : str
        What both have on their horizontal axis.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    draw(*panels)
    for axis in panels:
        axis.set_xlabel(across)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False)
    figure.suptitle(title)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)


def draw_line(axis: Axes, points: Sequence[tuple[float, float]], label: str, style: str) -> None:
    """Draw a line through points, where there are any."""
    if points:
        axis.plot(*zip(*points, strict=True), style, label=label, markersize=3)


def show_percent(axis: Axes, label: str) -> None:
    """Label a vertical axis of shares, in percent with as many digits as it takes."""
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
    axis.set_ylabel(label)
