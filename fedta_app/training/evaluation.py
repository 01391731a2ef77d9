"""The figures of a row: validation and test, measured on the server's images."""

import math

from torch import Tensor

from fedta_app.errors import RunError
from fedta_app.runs.metrics import Figures
from fedta_app.training.steps import evaluate
from fedta_app.training.workspace import Workspace


def measure(workspace: Workspace, weights: Tensor, *, last: bool = False) -> Figures:
    """Load the weights and measure them on the server's validation images, and on test images.

    Test images are read for reporting only; nothing is chosen by them. With `measure-test` "end"
    they are read once in a run, with "never" not at all.

    Parameters
    ----------
    last : bool
        Whether this is the last round's measurement.
    """
    workspace.weights.load(weights)
    validation, test = workspace.evaluation_sets
    _, val_accuracy = evaluate(workspace, validation)
    when = workspace.config.measure_test
    if when == "never" or (when == "end" and not last):
        return {"val_accuracy": val_accuracy}
    test_loss, test_accuracy = evaluate(workspace, test)
    return {"val_accuracy": val_accuracy, "test_accuracy": test_accuracy, "test_loss": test_loss}


def check_above_chance(workspace: Workspace, accuracy: float) -> None:
    """Refuse pre-trained weights whose head, made from their features, does no better than chance.

    Raises
    ------
    RunError
        When the validation accuracy is within three standard errors of 1 / classes.
    """
    chance = 1 / workspace.data.num_classes
    images = len(workspace.evaluation_sets[0])
    if not workspace.built.source.pretrained or images < workspace.data.num_classes:
        return  # too few images to tell
    if accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / images):
        raise RunError(
            f"round 0 is at chance ({accuracy:.1%} of {images} validation images right) although "
            f"weights = {workspace.config.weights!r} are pre-trained: check that they fit the model"
        )
