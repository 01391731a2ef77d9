"""The figures of a row: validation and test, measured on the server's images."""

from torch import Tensor

from fedta_app.metrics import Figures
from fedta_app.training import evaluate
from fedta_app.workspace import Workspace


def measure(workspace: Workspace, weights: Tensor) -> Figures:
    """Load the weights and measure them on the server's validation and test images.

    Test images are read for reporting only; nothing is chosen by them.
    """
    workspace.weights.load(weights)
    validation, test = workspace.evaluation_sets
    _, val_accuracy = evaluate(workspace, validation)
    test_loss, test_accuracy = evaluate(workspace, test)
    return {"val_accuracy": val_accuracy, "test_accuracy": test_accuracy, "test_loss": test_loss}
