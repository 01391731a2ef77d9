"""The arithmetic of one step of SGD with momentum on masked tensors, plain and foreach.

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
    """What one parameter brings to a step."""

    param: Tensor
    grad: Tensor
    mask: Tensor | None
    state: dict[str, Any]


def plain_step(slots: list[Slot], group: Group) -> None:
    """Step one tensor after the other."""
    momentum, decay = group["momentum"], group["weight_decay"]
    for param, grad, mask, state in slots:
        step = grad.neg() if group["maximize"] else grad
        if decay != 0:
            step = step.add(param, alpha=decay)
        if momentum != 0:
            buffer = state.get("momentum_buffer")
            if buffer is None:  # the first step has no dampening
                buffer = state["momentum_buffer"] = step.clone()
            else:
                buffer.mul_(momentum).add_(step, alpha=1 - group["dampening"])
            if mask is not None:
                mask_(buffer, mask)
            step = step.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        if mask is not None and (group["nesterov"] or momentum == 0):
            step = masked(step, mask) if step is grad else mask_(step, mask)
        param.add_(step, alpha=-float(group["lr"]))


def foreach_step(slots: list[Slot], group: Group) -> None:
    """Do the same with one call for all tensors, wherever PyTorch has one."""
    momentum, decay = group["momentum"], group["weight_decay"]
    params, grads = [slot.param for slot in slots], [slot.grad for slot in slots]
    steps = list(torch._foreach_neg(grads)) if group["maximize"] else grads
    if decay != 0:
        steps = _foreach_add(steps, params, decay, in_place=steps is not grads)
    if momentum != 0:
        buffers = _new_momentum(slots, steps, group)
        _foreach_mask(buffers, slots, in_place=True)
        if group["nesterov"]:
            steps = _foreach_add(steps, buffers, momentum, in_place=steps is not grads)
        else:
            steps = buffers
    if group["nesterov"] or momentum == 0:
        steps = _foreach_mask(steps, slots, in_place=steps is not grads)
    torch._foreach_add_(params, steps, alpha=-float(group["lr"]))


def _new_momentum(slots: list[Slot], steps: list[Tensor], group: Group) -> list[Tensor]:
    """Return the new momentum of every slot, not masked yet."""
    old = [i for i, slot in enumerate(slots) if slot.state.get("momentum_buffer") is not None]
    for i in set(range(len(slots))).difference(old):
        slots[i].state["momentum_buffer"] = steps[i].clone()
    buffers = [slot.state["momentum_buffer"] for slot in slots]
    if old:
        known = [buffers[i] for i in old]
        torch._foreach_mul_(known, group["momentum"])
        torch._foreach_add_(known, [steps[i] for i in old], alpha=1 - group["dampening"])
    return buffers


def _foreach_add(
    tensors: list[Tensor], others: list[Tensor], alpha: float, *, in_place: bool
) -> list[Tensor]:
    if not in_place:
        return list(torch._foreach_add(tensors, others, alpha=alpha))
    torch._foreach_add_(tensors, others, alpha=alpha)
    return tensors


def _foreach_mask(tensors: list[Tensor], slots: list[Slot], *, in_place: bool) -> list[Tensor]:
    apply = mask_ if in_place else masked
    pairs = zip(tensors, slots, strict=True)
    return [t if slot.mask is None else apply(t, slot.mask) for t, slot in pairs]


def mask_(tensor: Tensor, mask: Tensor) -> Tensor:
    """Set the frozen entries of a floating-point tensor to +0.0 in place, and return it.

    The product is of integers, and clears what an entry holds, whatever it is. A float product
    would turn infinities into NaN and negative numbers into -0.0; ``masked_fill_`` and ``where``
    branch on every entry, which on a CPU takes longer than all the rest of the step.
    """
    tensor.view(BITS[tensor.dtype]).mul_(mask)
    return tensor


def masked(tensor: Tensor, mask: Tensor) -> Tensor:
    """Return a copy of a floating-point tensor with +0.0 at its frozen entries."""
    return tensor.view(BITS[tensor.dtype]).mul(mask).view(tensor.dtype)
