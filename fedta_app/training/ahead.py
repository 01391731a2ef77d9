"""Gradients one step ahead of the weights, and the step that makes a model a client's own."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.amp import GradScaler

from fedta_app.algorithms.base import Loss
from fedta_app.device.cuda import repeatable, seeded
from fedta_app.seeding import derive_seed
from fedta_app.training.workspace import Workspace
from fedta_app.vectors.mask import FlatMask

# torch's 65536 can overflow at first, and a client has few steps to waste on that.
FP16_SCALE = 1024.0


class StepAhead:
    """A backward pass whose gradients are those at the weights that one plain step leads to.

    The step has neither momentum nor weight decay nor clipping, and moves trained entries only.

    Parameters
    ----------
    length : float
        Its learning rate.
    batches : iterator of (inputs, labels)
        What the gradients of the steps are taken on, one batch for each.
    loss : callable, optional
        As in `Passes`.
    trained : FlatMask, optional
        The entries that move; by default all of `workspace.weights`.
    """

    def __init__(
        self,
        workspace: Workspace,
        length: float,
        batches: Iterator[tuple[Tensor, Tensor]],
        loss: Loss | None = None,
        trained: FlatMask | None = None,
    ) -> None:
        self._workspace = workspace
        self._length = length
        self._batches = batches
        self._loss = loss
        self._trained = trained
        self._before = torch.empty_like(workspace.weights.vector)

    def __call__(self, inputs: Tensor, labels: Tensor, scaler: GradScaler) -> Tensor:
        """Put the scaled gradients into `.grad`, as `Passes` does, and return the loss ahead.

        The weights are what they were, bit for bit.
        """
        passes, weights = self._workspace.passes, self._workspace.weights
        self._before.copy_(weights.vector)
        passes(*next(self._batches), scaler, self._loss)
        _step(self._workspace, self._length / scaler.get_scale(), self._trained, self._before)
        loss = passes(inputs, labels, scaler, self._loss)
        weights.load(self._before)
        return loss


def adapt(workspace: Workspace, partition_id: int, length: float, trained: FlatMask | None) -> None:
    """Take one plain gradient step on all of a client's images together, without augmentation.

    Parameters
    ----------
    length : float
        Its learning rate.
    trained : FlatMask, optional
        The entries that move; by default all of `workspace.weights`.
    """
    config, model = workspace.config, workspace.model
    images = workspace.plain.train.subset(workspace.client_positions(partition_id))
    scaler = GradScaler(
        workspace.device.type, init_scale=FP16_SCALE, enabled=workspace.precision == "fp16"
    )
    model.train()
    model.zero_grad()  # training leaves its last gradients
    dropout = seeded(workspace.device, derive_seed(config.seed, "dropout", "adapt", partition_id))
    with dropout, repeatable(workspace.device, config.deterministic):
        for start in range(0, len(images), config.batch_size):
            those = slice(start, start + config.batch_size)
            inputs, labels = workspace.inputs(images.images[those]), images.labels[those]
            mean = workspace.passes.loss(model, inputs, labels)
            scaler.scale(mean * (len(labels) / len(images))).backward()
    before = workspace.weights.vector.clone()
    _step(workspace, length / scaler.get_scale(), trained, before)


@torch.no_grad()
def _step(workspace: Workspace, length: float, trained: FlatMask | None, before: Tensor) -> None:
    """Move the trained entries of the weights against `.grad`, which is None afterwards.

    Parameters
    ----------
    before : Tensor of shape (N,)
        A copy of the weights: what is frozen keeps their bits.
    """
    weights = workspace.weights
    for name in weights.names:
        parameter = workspace.model.get_parameter(name)
        if parameter.grad is not None:
            parameter.add_(parameter.grad, alpha=-length)
            parameter.grad = None
    if trained is not None:
        torch.where(trained.mask, weights.vector, before, out=weights.vector)
