"""Sums of squared per-example gradients of single layers.

A rule computes the per-example gradients of one tensor of a layer, from the gradient of the layer's
output and the layer's input, and passes them to the sink of that tensor. Linear layers and
convolutions, whose gradients are large, do this for a few examples at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Most bytes of a temporary: what fits the cache of a CPU core, and what keeps a GPU busy.
_CPU_BYTES, _GPU_BYTES = 1 << 20, 64 << 20


class UnsupportedModelError(RuntimeError):
    """The tape does not support how the model uses a trainable parameter."""


class BatchStatisticsError(ValueError):
    """The model normalises over the batch, so that no example has a gradient of its own."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"model must treat examples independently, but {where} normalises over the batch; use "
            "GroupNorm or LayerNorm, which normalise every example by itself, or a BatchNorm that "
            "keeps running statistics (track_running_stats=True), which are used for scoring"
        )


class Score:
    """The sink of a parameter: it adds the squares of per-example gradients to a total."""

    def __init__(self, parameter: nn.Parameter, total: Tensor) -> None:
        self.value, self.roots, self._total = parameter, [id(parameter)], total

    def add(self, gradients: Tensor) -> None:
        """Add the squares of gradients (B, *shape), in the precision of the total."""
        gradients = gradients.to(self._total.dtype)
        if len(gradients) == 1:  # one pass over memory instead of three
            self._total.addcmul_(gradients[0], gradients[0])
        else:
            self._total.add_(gradients.square().sum(0))

    def add_outer(self, left: Tensor, right: Tensor) -> None:
        """Add the squares of the outer products of left (B, m) and right (B, n)."""
        left, right = left.to(self._total.dtype), right.to(self._total.dtype)
        self._total.addmm_(left.square().t(), right.square())


class Derived:
    """The sink of a tensor computed from parameters: it passes gradients on to their sinks."""

    def __init__(self, value: Tensor, scores: Mapping[int, Score]) -> None:
        self.value, self.roots, self._scores = value, list(scores), list(scores.values())

    def add(self, gradients: Tensor) -> None:
        """Backpropagate each gradient to the parameters, and add it to their scores."""
        parameters = [score.value for score in self._scores]
        for gradient in gradients:
            parts = torch.autograd.grad(
                self.value, parameters, gradient, retain_graph=True, allow_unused=True
            )
            for score, part in zip(self._scores, parts, strict=True):
                if part is not None:
                    score.add(part[None])

    def add_outer(self, left: Tensor, right: Tensor) -> None:
        """Add the outer products of left (B, m) and right (B, n)."""
        self.add(left[:, :, None] * right[:, None, :])


Sink = Score | Derived

# Takes a sink, the gradient of an operation's output, and the operation's input activations.
Rule = Callable[..., None]


def _slices(values: Tensor, bytes_per_example: int) -> Iterator[slice]:
    """Yield slices of the examples, so that a temporary of so many bytes per example is small."""
    budget = _CPU_BYTES if values.device.type == "cpu" else _GPU_BYTES
    step = max(1, budget // bytes_per_example)
    return (slice(start, start + step) for start in range(0, len(values), step))


def _sum_to(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return values (B, ...) summed over the dimensions along which `shape` was broadcast."""
    padded = (1,) * (values.ndim - len(shape)) + tuple(shape)
    if padded[0] != 1:
        raise UnsupportedModelError("a trainable parameter has a value per example")
    return values.sum_to_size(len(values), *padded[1:])


def add_sum(sink: Sink, gradient: Tensor, *_: Tensor) -> None:
    """Add the gradients of a tensor that was added to an activation by broadcasting."""
    shape = sink.value.shape
    sink.add(_sum_to(gradient, shape).reshape(len(gradient), *shape))


def add_product(sink: Sink, gradient: Tensor, source: Tensor) -> None:
    """Add the gradients of a tensor that multiplied the source by broadcasting."""
    add_sum(sink, gradient * source)


def add_linear(sink: Sink, gradient: Tensor, source: Tensor) -> None:
    """Add the gradients of the weight of a linear layer with source (B, ..., features)."""
    if math.prod(gradient.shape[1:-1]) == 1:  # a single token
        sink.add_outer(gradient.flatten(1), source.flatten(1))
        return
    gradient, source = gradient.flatten(1, -2), source.flatten(1, -2)
    for part in _slices(gradient, sink.value.numel() * gradient.element_size()):
        sink.add(gradient[part].mT @ source[part])


def add_channel_sum(sink: Sink, gradient: Tensor, *_: Tensor) -> None:
    """Add the gradients of a tensor that was added to the channels of (B, channels, ...)."""
    sink.add(gradient.flatten(2).sum(2))


def add_convolution(
    geometry: Mapping[str, Any], groups: int, sink: Sink, gradient: Tensor, source: Tensor
) -> None:
    """Add the gradients of the weight of a convolution, a linear layer on image patches."""
    weight = sink.value
    gradient = gradient.reshape(len(gradient), groups, len(weight) // groups, -1)
    columns = weight[0].numel() * groups * gradient.shape[-1]
    for part in _slices(gradient, max(columns, weight.numel()) * gradient.element_size()):
        patches = F.unfold(source[part], weight.shape[2:], **geometry)
        patches = patches.reshape(len(patches), groups, weight[0].numel(), -1)
        sink.add((gradient[part] @ patches.mT).reshape(-1, *weight.shape))


def add_layer_norm(eps: float, sink: Sink, gradient: Tensor, source: Tensor) -> None:
    """Add the gradients of the weight of a layer norm."""
    add_product(sink, gradient, F.layer_norm(source, sink.value.shape, eps=eps))


def add_rms_norm(eps: float | None, sink: Sink, gradient: Tensor, source: Tensor) -> None:
    """Add the gradients of the weight of an RMS norm."""
    add_product(sink, gradient, F.rms_norm(source, list(sink.value.shape), eps=eps))


def add_group_norm(
    num_groups: int, eps: float, sink: Sink, gradient: Tensor, source: Tensor
) -> None:
    """Add the gradients of the weight of a group norm."""
    add_channel_sum(sink, gradient * F.group_norm(source, num_groups, eps=eps))
