"""What frozen features are worth: nearest neighbours by cosine, and a ridge classifier."""

import torch
from sklearn.linear_model import RidgeClassifier
from torch import Tensor, nn

from fedta_app.data.images import to_input
from fedta_app.data.loading import DataSplits, ImageSet
from fedta_app.models.building import features

NEIGHBOURS = 20
TEMPERATURE = 0.07  # of the votes, as in DINO's own evaluation


@torch.no_grad()
def embed(
    model: nn.Module, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return the features of uint8 images, float32, [N, d], on their device."""
    training = model.training
    model.eval()
    seen = [
        features(model, to_input(batch, size=batch.shape[-1], mean=mean, std=std)).float()
        for batch in images.split(500)
    ]
    model.train(training)
    return torch.cat(seen)


def knn_accuracy(known: Tensor, known_labels: Tensor, asked: Tensor, asked_labels: Tensor) -> float:
    """Return the accuracy of a vote of the 20 nearest neighbours.

    Votes are weighted by exp(cosine / 0.07), as Wu et al., "Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination" (CVPR 2018), and DINO weight them.

    Parameters
    ----------
    known, asked : tensors, shapes (N, d) and (M, d)
        Features of the images that vote, and of those that are classified.
    known_labels, asked_labels : int64 tensors, shapes (N,) and (M,)
    """
    known, asked = (nn.functional.normalize(part, dim=1) for part in (known, asked))
    right = 0
    for batch, labels in zip(asked.split(500), asked_labels.split(500), strict=True):
        near, which = (batch @ known.T).topk(min(NEIGHBOURS, len(known)), dim=1)
        votes = torch.zeros(len(batch), int(known_labels.max()) + 1, device=batch.device)
        votes.scatter_add_(1, known_labels[which], (near / TEMPERATURE).exp())
        right += int((votes.argmax(dim=1) == labels).sum())
    return right / len(asked)


def ridge_accuracy(
    known: Tensor, known_labels: Tensor, asked: Tensor, asked_labels: Tensor
) -> float:
    """Return the accuracy of scikit-learn's ridge classifier on standardised features."""
    mean, std = known.mean(dim=0), known.std(dim=0) + 1e-6
    known, asked = ((part - mean) / std for part in (known, asked))
    probe = RidgeClassifier().fit(known.cpu().numpy(), known_labels.cpu().numpy())
    return float(probe.score(asked.cpu().numpy(), asked_labels.cpu().numpy()))


def probe_splits(model: nn.Module, splits: DataSplits) -> dict[str, float]:
    """Fit both probes on the training images and return their accuracies on the test images."""
    sets: list[Tensor] = []
    part: ImageSet
    for part in (splits.train, splits.test):
        sets += [embed(model, part.images, splits.mean, splits.std), part.labels]
    return {"20-nn": knn_accuracy(*sets), "ridge": ridge_accuracy(*sets)}
