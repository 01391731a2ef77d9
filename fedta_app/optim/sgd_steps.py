"""One step of SGD with momentum on masked tensors, plain and foreach.

The order of operations is that of ``torch.optim.SGD``, so that a trained entry gets the same bits.
"""

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Group: TypeAlias = dict[str, Any]

BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


class Slot(NamedTuple):
    """One parameter with its gradient, its mask (None: trained whole) and its optimizer state."""

    param: Tensor
    grad: Tensor
    mask: Tensor | None
    state: dict[str, Any]


class Scratch:
    """Memory for intermediate results that is reused by all tensors and steps.

    On a CPU, malloc returns blocks of this size to the system each time; the page faults of new
    blocks can cost several times the arithmetic.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._factors: dict[Tensor, Tensor] = {}

    def like(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a tensor of this shape, whose contents the next call may overwrite."""
        if tensor.is_cuda or not tensor.is_contiguous():
            return torch.empty_like(tensor, dtype=dtype)
        key = (dtype, tensor.device)
        if key not in self._kept or self._kept[key].numel() < tensor.numel():
            self._kept[key] = torch.empty(tensor.numel(), dtype=dtype, device=tensor.device)
        return self._kept[key][: tensor.numel()].view(tensor.shape)

    def factor(self, tensor: Tensor, mask: Tensor) -> Tensor:
        """Return the mask for `mask_`, on a CPU as integers, which avoids a conversion there."""
        return mask if tensor.is_cuda else self.like(tensor, BITS[tensor.dtype]).copy_(mask)

    def mask_all_(self, pairs: list[tuple[Tensor, Tensor]], *, foreach: bool = False) -> None:
        """Apply `mask_` to each (tensor, mask), on a GPU with one kernel for all of them."""
        if not foreach and not all(tensor.is_cuda for tensor, _ in pairs):
            for tensor, mask in pairs:
                mask_(tensor, self.factor(tensor, mask))
        elif pairs:
            for tensor, mask in pairs:
                if mask not in self._factors:
                    self._factors[mask] = mask.to(BITS[tensor.dtype])
            torch._foreach_mul_(
                [tensor.view(BITS[tensor.dtype]) for tensor, _ in pairs],
                [self._factors[mask] for _, mask in pairs],
            )


def sgd_step(slots: list[Slot], group: Group, scratch: Scratch) -> None:
    """Update parameters by the operations, foreach or not, that SGD uses for the group."""
    foreach = group["foreach"]
    if foreach is None:  # PyTorch has kernels for lists of tensors on CUDA
        foreach = all(slot.param.is_cuda for slot in slots)
    if not foreach:
        plain_step(slots, group, scratch)
        return
    alike: dict[tuple[torch.device, torch.dtype], list[Slot]] = {}
    for slot in slots:
        alike.setdefault((slot.param.device, slot.param.dtype), []).append(slot)
    for some in alike.values():
        foreach_step(some, group, scratch)


def plain_step(slots: list[Slot], group: Group, scratch: Scratch) -> None:
    """Update one parameter after another."""
    momentum, decay, nesterov = group["momentum"], group["weight_decay"], group["nesterov"]
    computes_gradient = group["maximize"] or decay != 0 or nesterov
    for param, grad, mask, state in slots:
        out = scratch.like(grad, grad.dtype) if computes_gradient else grad
        step = torch.neg(grad, out=out) if group["maximize"] else grad
        if decay != 0:
            step = torch.add(step, param, alpha=decay, out=out)
        factor = None if mask is None else scratch.factor(grad, mask)
        if momentum != 0:
            buffer = _plain_momentum(state, step, group)
            if factor is not None:
                mask_(buffer, factor)
            step = torch.add(step, buffer, alpha=momentum, out=out) if nesterov else buffer
        if factor is not None and (nesterov or momentum == 0):
            step = scratch.like(grad, grad.dtype).copy_(grad) if step is grad else step
            mask_(step, factor)
        param.add_(step, alpha=-float(group["lr"]))


def _plain_momentum(state: dict[str, Any], step: Tensor, group: Group) -> Tensor:
    buffer: Tensor | None = state.get("momentum_buffer")
    if buffer is not None:
        return buffer.mul_(group["momentum"]).add_(step, alpha=1 - group["dampening"])
    buffer = state["momentum_buffer"] = step.clone()  # the first step has no dampening
    return buffer


def foreach_step(slots: list[Slot], group: Group, scratch: Scratch) -> None:
    """Update parameters of one device and dtype by torch's foreach operations.

    On CUDA each of them is one kernel for all tensors. They round half precision otherwise than the
    operations of `plain_step` do, on the CPU too: so these are the ones that SGD itself calls.
    """
    momentum, decay = group["momentum"], group["weight_decay"]
    params, grads = [slot.param for slot in slots], [slot.grad for slot in slots]
    steps = list(torch._foreach_neg(grads)) if group["maximize"] else grads
    if decay != 0:
        steps = list(torch._foreach_add(steps, params, alpha=decay))
    if momentum != 0:
        buffers = _foreach_momentum(slots, steps, group)
        masked = [(b, s.mask) for b, s in zip(buffers, slots, strict=True) if s.mask is not None]
        scratch.mask_all_(masked, foreach=True)
        nesterov = group["nesterov"]
        steps = list(torch._foreach_add(steps, buffers, alpha=momentum)) if nesterov else buffers
    if group["nesterov"] or momentum == 0:
        pairs = zip(steps, slots, strict=True)
        steps = [s if slot.mask is None else mask_(s.clone(), slot.mask) for s, slot in pairs]
    torch._foreach_add_(params, steps, alpha=-float(group["lr"]))


def _foreach_momentum(slots: list[Slot], steps: list[Tensor], group: Group) -> list[Tensor]:
    known = [slot.state.get("momentum_buffer") for slot in slots]
    buffers = [buffer for buffer in known if buffer is not None]
    if len(buffers) < len(slots):  # torch then takes them one by one, which rounds otherwise
        pairs = zip(slots, steps, strict=True)
        return [_plain_momentum(slot.state, step, group) for slot, step in pairs]
    torch._foreach_mul_(buffers, group["momentum"])
    torch._foreach_add_(buffers, steps, alpha=1 - group["dampening"])
    return buffers


def mask_(tensor: Tensor, mask: Tensor) -> Tensor:
    """Set the frozen entries of a floating-point tensor to +0.0 in place, and return it.

    The mask is bool, or 0 and 1 in integers of the tensor's width. It multiplies the bits as
    integers, since a float product would turn infinities into NaN and negative numbers into -0.0.
    ``masked_fill_`` and ``where`` are right too, but slower on a CPU than the rest of the step.
    """
    tensor.view(BITS[tensor.dtype]).mul_(mask)
    return tensor
