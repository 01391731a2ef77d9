"""Gradients one step ahead of the weights, and the step that makes a model a client's own."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn import Parameter

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
    Where fp16 overflows in its gradients, they are left in `.grad`, and the loss is that at the
    weights: the scaler then skips the step and lowers its factor, as in plain training.

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
        workspace, passes = self._workspace, self._workspace.passes
        loss = passes(*next(self._batches), scaler, self._loss)
        gradients = _gradients(workspace, self._trained)
        if scaler.is_enabled() and not _all_finite(gradients):
            return loss
        self._before.copy_(workspace.weights.vector)
        _step(gradients, self._length / scaler.get_scale())
        loss = passes(inputs, labels, scaler, self._loss)
        workspace.weights.load(self._before)
        return loss


def adapt(workspace: Workspace, partition_id: int, length: float, trained: FlatMask | None) -> None:
    """Take one plain gradient step on all of a client's images together, without augmentation.

    Where fp16 overflows, the loss is scaled by less; where it does without any scaling, the step is
    left out.

    Parameters
    ----------
    length : float
        Its learning rate.
    trained : FlatMask, optional
        The entries that move; by default all of `workspace.weights`.
    """
    config, model = workspace.config, workspace.model
    images = workspace.plain.train.subset(workspace.client_positions(partition_id))
    half = workspace.precision == "fp16"
    scale = FP16_SCALE if half else 1.0
    model.train()
    while True:
        model.zero_grad()  # training leaves its last gradients
        seed = derive_seed(config.seed, "dropout", "adapt", partition_id)
        with seeded(workspace.device, seed), repeatable(workspace.device, config.deterministic):
            for start in range(0, len(images), config.batch_size):
                those = slice(start, start + config.batch_size)
                inputs, labels = workspace.inputs(images.images[those]), images.labels[those]
                mean = workspace.passes.loss(model, inputs, labels)
                (mean * (len(labels) / len(images)) * scale).backward()
        gradients = _gradients(workspace, trained)
        if not half or _all_finite(gradients):
            return _step(gradients, length / scale)
        if scale <= 1:
            return model.zero_grad()
        scale /= 2


def _gradients(workspace: Workspace, trained: FlatMask | None) -> list[tuple[Parameter, Tensor]]:
    """Return the weights that have a gradient, with it; at frozen entries it is set to zero."""
    weights, found = workspace.weights, []
    masks = None if trained is None else weights.views(trained.mask)
    for name in weights.names:
        parameter = workspace.model.get_parameter(name)
        if parameter.grad is not None:
            if masks is not None:
                parameter.grad.masked_fill_(~masks[name], 0.0)
            found.append((parameter, parameter.grad))
    return found


def _all_finite(gradients: list[tuple[Parameter, Tensor]]) -> bool:
    """Return whether no gradient overflowed, with one wait for the GPU for all of them."""
    return bool(torch.stack([gradient.isfinite().all() for _, gradient in gradients]).all())


@torch.no_grad()
def _step(gradients: list[tuple[Parameter, Tensor]], length: float) -> None:
    """Move the weights against their gradients, which are None afterwards.

    Where a gradient is zero, a weight keeps its bits: -0.0 is added to it.
    """
    for parameter, gradient in gradients:
        parameter.add_(gradient, alpha=-length)
        parameter.grad = None
