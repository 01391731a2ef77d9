"""How good the models are that clients keep for themselves, each on its own label distribution."""

import numpy as np
import torch
from torch import Tensor

from fedta_app.analysis.classification import Counts, Floats
from fedta_app.data.loading import ImageSet
from fedta_app.training.steps import predict
from fedta_app.training.workspace import Workspace


def recalls(workspace: Workspace, images: ImageSet, counts: Counts) -> Floats:
    """Return the share of each class that the model's current weights predict right, (C,).

    Only images of the classes that a client holds are predicted; it is NaN for all others, and
    where a class has no image. `fedta_app.analysis.client_accuracy` makes the accuracy on the
    client's label distribution of it.

    Parameters
    ----------
    images : ImageSet
        Validation or test images.
    counts : int64 array of shape (C,)
        The client's training images of each class.
    """
    held = torch.from_numpy(counts > 0).to(images.labels.device)
    found: Floats = np.full(len(counts), np.nan)
    positions = held[images.labels].nonzero().view(-1)
    if len(positions):
        chosen = images.subset(positions)
        right = predict(workspace, chosen)[1] == chosen.labels
        of_class = _count(chosen.labels, len(counts))
        there = of_class > 0
        found[there] = _count(chosen.labels[right], len(counts))[there] / of_class[there]
    return found


def _count(labels: Tensor, num_classes: int) -> Counts:
    counted: Counts = torch.bincount(labels, minlength=num_classes).cpu().numpy()
    return counted
