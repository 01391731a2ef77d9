"""The figures of a row: validation and test, measured on the server's images."""

from typing import TypedDict

from torch import Tensor

from fedta_app.training import evaluate
from fedta_app.workspace import Workspace


class Figures(TypedDict, total=False):
    """The evaluation columns of `metrics.Row`; empty in a round that is not measured."""

    val_accuracy: float
    test_accuracy: float
    test_loss: float


def measure(workspace: Workspace, weights: Tensor) -> Figures:
    """Load the weights and measure them on the server's validation and test images.

    Test images are read for reporting only; nothing is chosen by them.
    """
    workspace.weights.load(weights)
    validation, test = workspace.evaluation_sets
    _, val_accuracy = evaluate(workspace, validation)
    test_loss, test_accuracy = evaluate(workspace, test)
    return {"val_accuracy": val_accuracy, "test_accuracy": test_accuracy, "test_loss": test_loss}
