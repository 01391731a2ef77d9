"""The ridge head of a run: sums over the features of images, and the head from these sums."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedta_app.data.loading import ImageSet
from fedta_app.device.cuda import to_device
from fedta_app.errors import RunError
from fedta_app.heads.ridge import RidgeStatistics, fit_temperature, select_ridge
from fedta_app.models.building import features, num_features
from fedta_app.progress import counting
from fedta_app.seeding import numpy_generator
from fedta_app.training.workspace import Workspace


def head_statistics(workspace: Workspace, images: ImageSet) -> RidgeStatistics:
    """Return the sums for the ridge head over the features of images that are not augmented."""
    statistics = empty_statistics(workspace)
    for batch, labels in _feature_batches(workspace, images):
        statistics.add(batch, labels)
    return statistics


def empty_statistics(workspace: Workspace) -> RidgeStatistics:
    """Return zero statistics for the numbers of features and classes of the run."""
    return RidgeStatistics(num_features(workspace.model), workspace.data.num_classes)


def head_images(
    workspace: Workspace, positions: Tensor | None, *, at_start: bool = False
) -> ImageSet:
    """Return those of some training images that a ridge head is made from.

    Parameters
    ----------
    positions : int64 Tensor, or None for all
        The images, as `Workspace.counted_positions` or `client_positions` returns them.
    at_start : bool
        Whether the weights are still those of the start, whose features may be known already.
    """
    device = workspace.device
    number, fraction = len(workspace.data.train), workspace.config.head_fraction
    order = numpy_generator(workspace.config.seed, "head-fraction").permutation(number)
    chosen = torch.zeros(number, dtype=torch.bool)
    chosen[order[: max(1, round(fraction * number))]] = True
    if positions is None:
        positions = torch.arange(number, device=device)
    images = workspace.start_images("train") if at_start else workspace.plain.train
    return images.subset(positions[to_device(chosen, device)[positions]])


def _feature_batches(workspace: Workspace, images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield float32 features (B, d) and labels (B,) of the images, in evaluation mode."""
    if images.are_features:
        yield images.images, images.labels
        return
    workspace.model.eval()
    size = workspace.config.eval_batch_size
    with counting("images", len(images)) as done:
        for start in range(0, len(images), size):
            batch = images.images[start : start + size]
            with torch.inference_mode():
                found = features(workspace.model, workspace.inputs(batch))
            yield found, images.labels[start : start + size]
            done.add(len(batch))


@dataclass(frozen=True)
class FittedHead:
    """A ridge head ready to be frozen.

    Attributes
    ----------
    vector : float32 Tensor of shape (C * d + C,)
        Weight, then bias, both divided by the temperature.
    ridge : float
        The absolute ridge strength.
    temperature : float
    """

    vector: Tensor
    ridge: float
    temperature: float

    def facts(self) -> dict[str, Any]:
        """Return what summary.json says of the head."""
        return {"kind": "ridge", "ridge": self.ridge, "temperature": self.temperature}


def pooled_head(workspace: Workspace, *, at_start: bool = False) -> FittedHead:
    """Return the ridge head over all training images, wherever they lie, as `fit_head` does."""
    images = head_images(workspace, None, at_start=at_start)
    return fit_head(workspace, head_statistics(workspace, images), at_start=at_start)


def fit_head(
    workspace: Workspace, statistics: RidgeStatistics, *, at_start: bool = False
) -> FittedHead:
    """Return the ridge head; validation images choose strength and temperature that are not set.

    Parameters
    ----------
    at_start : bool
        As in `head_images`.

    Raises
    ------
    RunError
        When the head is not finite.
    """
    config = workspace.config
    # All validation images, whatever eval-size is: measuring must not change what is trained.
    images = workspace.start_images("val") if at_start else workspace.plain.val
    batches = list(_feature_batches(workspace, images))
    found = torch.cat([batch for batch, _ in batches]).cpu().double()
    labels = torch.cat([part for _, part in batches]).cpu()
    if config.ridge:
        ridge = config.ridge * statistics.scale()
    else:
        ridge = select_ridge(statistics, found, labels)
    weight, bias = statistics.solve(ridge)
    temperature = config.head_temperature or fit_temperature(found @ weight.T + bias, labels)
    vector = (torch.cat([weight.flatten(), bias]) / temperature).float()
    if not vector.isfinite().all():
        raise RunError(
            f"the ridge head is not finite with a strength of {ridge:g} and a temperature of "
            f"{temperature:g}: set head-temperature or ridge to another value, or 0 to choose it"
        )
    return FittedHead(vector, ridge, temperature)


NOT_FINITE = "features of validation images are not finite"  # why no head is made of them


def longest_feature(workspace: Workspace) -> float:
    """Return the largest squared length of the features of some validation images.

    At most 100 of them, of all classes, under the weights that the model has now. If a feature is
    not finite, neither is what is returned.
    """
    known = workspace.plain.val
    chosen = torch.linspace(0, len(known) - 1, min(100, len(known))).long()  # by class in a folder
    images = known.subset(chosen)
    batches = _feature_batches(workspace, images)
    lengths = torch.cat([found.double().square().sum(1) for found, _ in batches])
    return float(lengths.max())  # NaN, if there is one


class PersonalHeads:
    r"""Ridge heads of clients' own, at the weights that the model has now.

    With A and B the sums of features and targets of all clients (`RidgeStatistics`), and
    :math:`A_k`, :math:`B_k` those of client k, its head solves

    .. math::

        (A_k + s A + \lambda_k I)\, W = B_k + s B,

    with an intercept that is not penalised. :math:`\lambda_k` is the same share of the mean
    variance of the features as for the head of all clients, whatever the number of images. For
    large s that is this head, for small s the client's alone.

    Parameters
    ----------
    share : float
        s, above 0.
    """

    def __init__(self, workspace: Workspace, share: float) -> None:
        self._workspace = workspace
        total = head_statistics(workspace, head_images(workspace, None))
        fitted = fit_head(workspace, total)
        self._relative = fitted.ridge / total.scale()
        self._temperature = fitted.temperature
        self._shared = total.scaled(share)

    def load(self, partition_id: int) -> None:
        """Load a client's head into the model, whose other weights are those of the start."""
        own = self._workspace.client_positions(partition_id)  # those it shares with others too
        images = head_images(self._workspace, own)
        sums = head_statistics(self._workspace, images) + self._shared
        weight, bias = sums.solve(self._relative * sums.scale())
        assert self._workspace.head is not None
        vector = torch.cat([weight.flatten(), bias]) / self._temperature
        self._workspace.head.load(vector.float())
