"""Loss and nearest-neighbour accuracy of a pre-training run against its epochs."""

from pathlib import Path

from fedta_app.plotting import draw_line, show_percent, two_panels

_LABELS = {
    "loss": "loss",
    "entropy": "entropy of the teacher's outputs",
    "spread": "entropy of their mean over a batch",
}


def save_curve(path: Path, rows: list[dict[str, float]], title: str) -> None:
    """Save loss (DINO: and what would show a collapse) and k-NN accuracy as PNG.

    Parameters
    ----------
    rows : list of dict
        As `experiments.pretraining.loop.Training.rows`; a column that a row lacks is left out.
    """

    def points(column: str) -> list[tuple[float, float]]:
        return [(row["epoch"], row[column]) for row in rows if column in row]

    with two_panels(path, title, across="epoch") as (loss, accuracy):
        for column, label in _LABELS.items():
            draw_line(loss, points(column), label)
        draw_line(accuracy, points("knn"), "CIFAR-10, 20-NN", "o-")
        show_percent(accuracy, "accuracy of frozen features")
        loss.set_ylabel("nats")
