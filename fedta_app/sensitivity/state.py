"""The state in which a model is measured, and its return to the state in which it was found.

A model may keep more than weights: buffers that a forward pass updates, and attributes in which it
keeps what it computed. The attention layers of timm's LeViT keep, in evaluation mode, a table made
from a parameter: if it was made from other weights, or without autograd, the parameter would
seem to have no gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import nn

_Container = dict[Any, Any] | list[Any] | set[Any]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode for the time of a `with` block, and restore it afterwards.

    Autograd is on and autocast is off. Every call of the model finds the same state, whatever
    earlier calls wrote into its buffers and attributes: so the gradient of an example does not
    depend on the examples before it. Afterwards buffers, attributes and modes are as before.
    """
    before, training = _State(model), model.training
    device = next(model.parameters()).device.type
    try:
        model.train()  # timm's layers drop here what they keep from calls in evaluation mode
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.RNNBase):  # cuDNN has their gradients in training mode only
                module.training, module.dropout = True, 0.0
        same: _State
        model.register_forward_pre_hook(lambda *_: same.restore())
        same = _State(model)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device, enabled=False),
        ):
            yield
    finally:
        model.train(training)  # undoes what the model's own `eval` did, such as to merge adapters
        before.restore()


class _State:
    """Attributes and buffers of all modules, with a copy of what a container holds."""

    def __init__(self, model: nn.Module) -> None:
        attributes = [module.__dict__ for module in model.modules()]
        kept = [
            value
            for owner in attributes
            for value in owner.values()
            if isinstance(value, dict | list | set)
        ]
        self._containers = [(value, value.copy()) for value in [*attributes, *kept]]
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        self._versions = [_version(buffer) for buffer, _ in self._buffers]

    def restore(self) -> None:
        for container, content in self._containers:
            if container or content:
                _refill(container, content)
        for index, (buffer, values) in enumerate(self._buffers):
            if _version(buffer) != self._versions[index]:
                with torch.no_grad():
                    buffer.detach_().copy_(values)
                self._versions[index] = _version(buffer)


def _refill(container: _Container, content: Any) -> None:
    """Give a container its content again, in the old order."""
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, set):
        container.clear()
        container |= content
    elif list(container) != list(content) or not all(
        map(is_, container.values(), content.values())
    ):
        container.clear()
        container.update(content)


def _version(buffer: torch.Tensor) -> int:
    """Return a number that changes with the buffer; inference tensors do not change outside."""
    return 0 if buffer.is_inference() else buffer._version
