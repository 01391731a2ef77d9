"""What frozen features are worth: nearest neighbours by cosine, and a ridge classifier."""

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from fedta_app.data.images import to_input
from fedta_app.data.loading import DataSplits
from fedta_app.models.building import features

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the votes, as in DINO's own evaluation


@torch.no_grad()
def embed(
    model: nn.Module, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return the features of uint8 images, float32, (N, d), on their device."""
    training = model.training
    model.eval()
    seen = [
        features(model, to_input(batch, size=batch.shape[-1], mean=mean, std=std)).float()
        for batch in images.split(500)
    ]
    model.train(training)
    return torch.cat(seen)


def accuracy(
    probe: Any, known: Tensor, known_labels: Tensor, asked: Tensor, asked_labels: Tensor
) -> float:
    """Return the accuracy of a classifier of scikit-learn on some features, fitted on others.

    Parameters
    ----------
    known, asked : tensors, shapes (N, d) and (M, d)
        Features of the images that it is fitted on, and of those that are classified.
    known_labels, asked_labels : int64 tensors, shapes (N,) and (M,)
    """
    probe.fit(known.cpu().numpy(), known_labels.cpu().numpy())
    return float(probe.score(asked.cpu().numpy(), asked_labels.cpu().numpy()))


def knn_accuracy(known: Tensor, *others: Tensor) -> float:
    """Return the accuracy of a vote of the 20 nearest neighbours; see `accuracy`.

    Votes are weighted by exp(cosine / 0.07), as Wu et al., "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination" (CVPR 2018), and DINO weight them.
    """
    voters = KNeighborsClassifier(
        min(NEIGHBOURS, len(known)),
        metric="cosine",
        weights=lambda distances: np.exp((1 - distances) / TEMPERATURE),
    )
    return accuracy(voters, known, *others)


def ridge_accuracy(*sets: Tensor) -> float:
    """Return the accuracy of a ridge classifier on standardised features; see `accuracy`."""
    return accuracy(make_pipeline(StandardScaler(), RidgeClassifier()), *sets)


def probe_splits(model: nn.Module, splits: DataSplits) -> dict[str, float]:
    """Fit both probes on the training images and return their accuracies on the test images."""
    sets: list[Tensor] = []
    for part in (splits.train, splits.test):
        sets += [embed(model, part.images, splits.mean, splits.std), part.labels]
    return {"20-nn": knn_accuracy(*sets), "ridge": ridge_accuracy(*sets)}
