"""Measuring the global model on validation and test images, and when that is due."""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fedta_app.config import RunConfig
from fedta_app.data.loading import ImageSet
from fedta_app.errors import RunError
from fedta_app.runs.loop import Phase
from fedta_app.runs.metrics import Figures, Row
from fedta_app.training.steps import evaluate
from fedta_app.training.workspace import Workspace


def measure(
    workspace: Workspace, weights: Tensor, *, last: bool = False, at_start: bool = False
) -> Figures:
    """Load the weights and return their figures on validation and test images.

    Test images are for reporting only; nothing is chosen by them. With `measure-test = "end"` they
    are read once in a run, with "never" not at all.

    Parameters
    ----------
    last : bool
        Whether this is the last round's measurement.
    at_start : bool
        Whether the weights are still those of the start, whose features may be known already.
    """
    workspace.weights.load(weights)

    def images(split: str) -> ImageSet:
        if at_start:
            return workspace.measured(split, workspace.start_images(split))
        return workspace.evaluation_sets[split == "test"]

    val_loss, val_accuracy = evaluate(workspace, images("val"))
    figures: Figures = {"val_accuracy": val_accuracy, "val_loss": val_loss}
    when = workspace.config.measure_test
    if when == "always" or (when == "end" and last):
        figures["test_loss"], figures["test_accuracy"] = evaluate(workspace, images("test"))
    return figures


def highest_by_chance(num_classes: int, images: int) -> float | None:
    """Return the accuracy up to which a model may be guessing: 1 / classes + 3 standard errors.

    Return None if so few images cannot tell a guess from a model that has learned something: where
    the errors are larger than a quarter of the way from 1 / classes to 1.

    Examples
    --------
    >>> round(highest_by_chance(100, 10_000), 4)
    0.013
    >>> highest_by_chance(2, 20) is None
    True
    """
    chance = 1 / num_classes
    errors = 3 * math.sqrt(chance * (1 - chance) / images)
    enough = images >= num_classes and errors <= (1 - chance) / 4
    return chance + errors if enough else None


def check_above_chance(workspace: Workspace, accuracy: float) -> None:
    """Refuse pre-trained weights whose features give a head that is no better than chance.

    Raises
    ------
    RunError
        When the validation accuracy may be chance (see `highest_by_chance`).
    """
    images = len(workspace.evaluation_sets[0])
    highest = highest_by_chance(workspace.data.num_classes, images)
    if workspace.built.source.pretrained and highest is not None and accuracy <= highest:
        raise RunError(
            f"round 0 is at chance ({accuracy:.1%} of {images} validation images right) although "
            f"weights = {workspace.config.weights!r} are pre-trained: check that they fit the model"
        )


class Start(Phase):
    """Round 0: the model is measured before training, and refused if it is at chance.

    Parameters
    ----------
    measure : callable
        As `measure` here, of the global model.
    """

    name = "start"

    def __init__(self, workspace: Workspace, measure: Callable[..., Figures]) -> None:
        super().__init__(1)
        self._workspace = workspace
        self._measure = measure

    def run_round(self, number: int) -> Row:
        """Return the row of round 0."""
        figures = self._measure(at_start=True)
        if self._workspace.head is not None:
            check_above_chance(self._workspace, figures["val_accuracy"])
        return Row(0, self.name, **figures)


def measured_when_due(row: Row, config: RunConfig, measure: Callable[..., Figures]) -> Row:
    """Return the row of a training round, with the figures of `measure` where these are due.

    They are due every `eval-every` rounds and in the last round.
    """
    last = row.round == config.num_server_rounds
    if last or row.round % config.eval_every == 0:
        return replace(row, **measure(last=last))
    return row
