"""The figure of a run's accuracy and loss over its rounds."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedta_app.config import RunConfig
from fedta_app.plotting import (
    draw_line,
    fit_losses,
    fit_shares,
    show_percent,
    two_panels,
    use_integers,
)
from fedta_app.runs.metrics import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_curves(path: Path, rows: list[Row], config: RunConfig) -> None:
    """Save accuracy (validation, test) and loss (training too) of the training rounds as PNG."""
    trained = [row for row in rows if row.phase in ("start", "train")]

    def line(axis: "Axes", column: str, label: str, style: str) -> None:
        points = [(row.round, getattr(row, column)) for row in trained]
        draw_line(axis, [point for point in points if point[1] is not None], label, style)

    centralized = config.engine == "centralized"
    across, note = round_label(config), note_on_test(config.measure_test)
    with two_panels(path, config.name, across, note) as (accuracy, loss):
        line(accuracy, "val_accuracy", "validation", "C0o-")
        line(accuracy, "test_accuracy", "test", "C1s-")
        line(loss, "train_loss", "training" if centralized else "training (sampled clients)", "C7-")
        line(loss, "val_loss", "validation", "C0o-")
        line(loss, "test_loss", "test", "C1s-")
        show_percent(accuracy, "accuracy")
        loss.set_ylabel("cross-entropy")
        fit_shares(accuracy)
        fit_losses([loss])
        for axis in (accuracy, loss):
            use_integers(axis.xaxis, 8)


def round_label(config: RunConfig) -> str:
    """Return what a figure calls the rounds of a run.

    Examples
    --------
    >>> round_label(RunConfig(engine="centralized", local_steps=0))
    'epoch'
    >>> round_label(RunConfig(engine="centralized", local_steps=96))
    'round of 96 steps'
    >>> round_label(RunConfig())
    'round'
    """
    if config.engine != "centralized":
        return "round"
    return f"round of {config.local_steps} steps" if config.local_steps else "epoch"


def note_on_test(measure_test: str) -> str:
    """Return why a figure has no curve of the test set, empty where it has one."""
    return {
        "always": "",
        "end": 'The test set is measured once, at the end (measure-test = "end"); "always" draws '
        "its curve.",
        "never": 'The test set is not measured (measure-test = "never"); "always" draws its curve.',
    }[measure_test]
