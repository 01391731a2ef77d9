"""Squared per-example gradients, layer by layer, at the cost of about one backward pass.

If the loss is summed over the batch, the gradient G of a layer's output has one slice per example.
With the layer's input A it gives the weight gradient of each example (Goodfellow, "Efficient
Per-Example Gradient Computations", arXiv 1510.01799; `G[b].T @ A[b]` for a linear layer over
tokens), which is squared and summed before that of the next layer is computed. So memory depends on
the largest layer, not on the number of examples.

A `TorchFunctionMode` intercepts every operation that takes a trainable parameter, runs it on a
detached copy, so that autograd computes gradients of activations only, and hooks its output. This
covers bare parameters (class token, position embedding, layer scale), subclassed layers and
functional code. Tensors computed from parameters alone (a resampled position embedding) are tracked
too, and gradients are backpropagated through them example by example. An unsupported use raises
`UnsupportedModelError`; a use outside the mode does too, because autograd then reaches the
parameter, and so does reading a value in Python, which may make an example depend on others. What
is missed even so is found by `fedta_app.sensitivity.paths`, which compares with a loop.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedta_app.device import cpu_kernels
from fedta_app.sensitivity.layers import (
    BatchStatisticsError,
    Derived,
    Rule,
    Score,
    Sink,
    UnsupportedModelError,
    add_channel_sum,
    add_convolution,
    add_group_norm,
    add_layer_norm,
    add_linear,
    add_product,
    add_rms_norm,
    add_sum,
)

_MaybeTensor = TypeVar("_MaybeTensor", bound=Tensor | None)


class SquaredGradientTape(TorchFunctionMode):
    """Record one forward pass, so that its backward pass adds squared per-example gradients.

    Parameters
    ----------
    totals
        For each trainable parameter the tensor to which the sum of squares is added, in place.
    batch_size
        Number of examples; they are the first dimension of every activation.
    """

    def __init__(self, totals: Mapping[nn.Parameter, Tensor], batch_size: int) -> None:
        super().__init__()
        self._scores = {id(p): Score(p, total) for p, total in totals.items()}
        self._sinks: dict[int, Sink] = {**self._scores}
        self._used: set[int] = set()
        self._parameters = list(totals)
        self._batch_size = batch_size
        # Added to outputs that would need no gradient, so that autograd reaches their hooks.
        self._anchor = torch.zeros((), device=self._parameters[0].device, requires_grad=True)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((*args, *kwargs.values()))
        tracked = [tensor for tensor in tensors if self.tracks(tensor)]
        if func is F.batch_norm and kwargs["training"] and not self.tracks(args[0]):
            # A single row without a scale may be the weights of timm's convolutions.
            where = "a batch_norm without running statistics"
            if len(args[0]) > 1 or tracked:
                raise BatchStatisticsError(where)
        if func in _READS and not tracked:
            raise UnsupportedModelError("the model reads the value of a tensor in Python")
        if not tracked or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func is torch.Tensor.expand and not kwargs and self._copies_per_example(*args):
            return self.watch(args[0].detach().expand(*args[1:]), (), (args[0], add_sum))
        if len(tracked) == len(tensors):
            return self._follow(func(*args, **kwargs), tracked)
        if func in _OPERATIONS:
            return _OPERATIONS[func](self, *args, **kwargs)
        value = func(*args, **kwargs)
        if any(tensor.requires_grad for tensor in _tensors([value])):
            raise UnsupportedModelError(f"{func.__name__} takes a trainable parameter")
        return value  # a property of the parameter, such as its dtype

    def backward(self, loss: Tensor) -> None:
        """Add the squared per-example gradients of a loss that is a sum over examples.

        Raises
        ------
        UnsupportedModelError
            If a parameter was used outside torch's functions, or an activation was overwritten.
        """
        if not loss.requires_grad:  # no trainable parameter was used
            return
        inputs = [self._anchor, *self._parameters]
        _, *missed = torch.autograd.grad(loss, inputs, allow_unused=True)
        if any(gradient is not None for gradient in missed):
            raise UnsupportedModelError("a trainable parameter is used outside torch's functions")

    def tracks(self, tensor: Tensor | None) -> bool:
        """Return whether the tensor is a trainable parameter, or computed from such only."""
        return id(tensor) in self._sinks

    def constant(self, tensor: _MaybeTensor) -> _MaybeTensor:
        """Return the tensor, detached if it is tracked."""
        return cast(Any, tensor).detach() if self.tracks(tensor) else tensor

    def watch(
        self, output: Tensor, sources: tuple[Tensor, ...], *uses: tuple[Tensor | None, Rule]
    ) -> Tensor:
        """Return the output with a hook that passes its gradient to the sinks of the tensors used.

        Each use is a tensor and the rule that computes its per-example gradients from the gradient
        of the output and the sources, which are the input activations of the operation.
        """
        feeds = [(self._sinks[id(used)], rule) for used, rule in uses if self.tracks(used)]
        for tensor in (output, *sources):
            if tensor.ndim < 2 or len(tensor) != self._batch_size:
                raise UnsupportedModelError("an activation's first dimension is not the batch")
        for root in (root for sink, _ in feeds for root in sink.roots):
            if root in self._used:  # its gradients would have to be added before squaring
                raise UnsupportedModelError("a trainable parameter is used twice")
            self._used.add(root)
        if not output.requires_grad:
            output = output + self._anchor
        cast(Any, output).register_hook(_Feed(feeds, sources))
        return output

    def _follow(self, value: Any, sources: Sequence[Tensor]) -> Any:
        """Track the value of a function that took tracked tensors only."""
        roots = [root for source in sources for root in self._sinks[id(source)].roots]
        for tensor in _tensors([value]):
            if tensor.requires_grad and id(tensor) not in self._scores:
                self._sinks[id(tensor)] = Derived(tensor, {r: self._scores[r] for r in roots})
        return value

    def _copies_per_example(self, tensor: Tensor, *sizes: Any) -> bool:
        """Return whether `tensor.expand(*sizes)` gives every example a copy of the tensor."""
        copies = (self._batch_size, *tensor.shape[1:])
        return tensor.shape[:1] == (1,) and tensor.detach().expand(*sizes).shape == copies


# What depends on such a value may depend on other examples.
_READS = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.allclose,
    torch.equal,
    torch.is_nonzero,
}


class _Feed:
    """A backward hook that applies rules once, and then releases the activations."""

    def __init__(self, feeds: Sequence[tuple[Sink, Rule]], sources: tuple[Tensor, ...]) -> None:
        self._feeds = feeds
        self._sources = [source.detach() for source in sources]  # shares its version counter
        self._versions = [source._version for source in sources]

    def __call__(self, gradient: Tensor) -> None:
        sources, self._sources = self._sources, []
        if [source._version for source in sources] != self._versions:
            raise UnsupportedModelError("an activation was changed in place")
        for sink, rule in self._feeds:
            rule(sink, gradient, *sources)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among the values and in their lists and tuples."""
    flat: list[Any] = []
    for value in values:
        flat.extend(value if isinstance(value, list | tuple) else (value,))
    return [value for value in flat if isinstance(value, Tensor)]


def _linear(
    tape: SquaredGradientTape,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    product: Callable[..., Tensor] = F.linear,
) -> Tensor:
    output = product(input, tape.constant(weight), tape.constant(bias))
    return tape.watch(output, (input,), (weight, add_linear), (bias, add_sum))


def _conv2d(
    tape: SquaredGradientTape,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | str = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.ndim != 4:
        raise UnsupportedModelError("a convolution pads by name or takes a single image")
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    output = F.conv2d(input, tape.constant(weight), tape.constant(bias), groups=groups, **geometry)
    rule = partial(add_convolution, geometry, groups)
    return tape.watch(output, (input,), (weight, rule), (bias, add_channel_sum))


def _layer_norm(
    tape: SquaredGradientTape,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    output = F.layer_norm(input, normalized_shape, tape.constant(weight), tape.constant(bias), eps)
    rule = partial(add_layer_norm, eps)
    return tape.watch(output, (input,), (weight, rule), (bias, add_sum))


def _rms_norm(
    tape: SquaredGradientTape,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    output = F.rms_norm(input, normalized_shape, tape.constant(weight), eps)
    return tape.watch(output, (input,), (weight, partial(add_rms_norm, eps)))


def _group_norm(
    tape: SquaredGradientTape,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    output = F.group_norm(input, num_groups, tape.constant(weight), tape.constant(bias), eps)
    rule = partial(add_group_norm, num_groups, eps)
    return tape.watch(output, (input,), (weight, rule), (bias, add_channel_sum))


def _plus(tape: SquaredGradientTape, input: Tensor, other: Tensor, **options: Any) -> Tensor:
    _refuse(options)
    output = tape.constant(input) + tape.constant(other)
    return tape.watch(output, (), (input, add_sum), (other, add_sum))


def _times(tape: SquaredGradientTape, input: Tensor, other: Tensor, **options: Any) -> Tensor:
    _refuse(options)
    factor, source = (input, other) if tape.tracks(input) else (other, input)
    output = tape.constant(factor) * source
    return tape.watch(output, (source,), (factor, add_product))


def _refuse(options: Mapping[str, Any]) -> None:
    if options:
        raise UnsupportedModelError(f"a sum or product takes {', '.join(options)}")


# The operations that may take trainable parameters together with activations.
_OPERATIONS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: _linear,
    cpu_kernels.linear: partial(_linear, product=cpu_kernels.linear),
    F.conv2d: _conv2d,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    torch.Tensor.add: _plus,
    torch.add: _plus,
    torch.Tensor.mul: _times,
    torch.mul: _times,
}
