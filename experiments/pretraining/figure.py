"""Loss and nearest-neighbour accuracy of a pre-training run against its epochs."""

from pathlib import Path

from matplotlib.axes import Axes

from fedta_app.runs.curves_figure import draw_line, save_panels, show_percent

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
        As `experiments.pretraining.loop.Training.rows`; a column that a row lacks is left out.
    title : str
    """

    def line(axis: Axes, column: str, label: str, style: str) -> None:
        points = [(row["epoch"], row[column]) for row in rows if column in row]
        draw_line(axis, points, label, style)

    def draw(loss: Axes, accuracy: Axes) -> None:
        for column, label in _LABELS.items():
            line(loss, column, label, "-")
        line(accuracy, "knn", "CIFAR-10, 20-NN", "o-")
        show_percent(accuracy, "accuracy of frozen features")
        loss.set_ylabel("nats")

    save_panels(path, draw, title=title, across="epoch")
