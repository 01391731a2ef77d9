"""Element-wise steps on weights that keep the bits of what does not move."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**18  # entries worked on at a time: temporaries stay in the cache, in reused memory
_GPU_BLOCK = 2**23  # where each piece costs the launch of some kernels
_ONE_THREAD = 2**14  # torch sums up to twice as many without its other threads


def stepped(value: Tensor, update: Tensor, scale: float = 1.0) -> Tensor:
    """Return value + scale * update, keeping the bits of the value where the update is zero.

    Plain addition turns -0.0 + 0.0 into +0.0: a weight nobody moved would change its bits.
    """
    if abs(scale) > torch.finfo(value.dtype).max:  # torch refuses it with an error of its own
        scale = math.copysign(math.inf, scale)
    return torch.where(update == 0, value, value.add(update, alpha=scale))


def squared_norm(vector: Tensor) -> float:
    """Return the sum of the squares of all entries, in float64.

    torch splits a sum of this many entries or more among its threads, and how many they are would
    decide the last bits; the pieces are shorter.

    Examples
    --------
    >>> squared_norm(torch.tensor([3.0, 4.0]))
    25.0
    """
    if vector.is_cuda:  # where thousands of small kernels would take longer than a step
        return float(vector.double().square().sum())
    pieces = vector.reshape(-1).split(_ONE_THREAD)
    return math.fsum(torch.stack([piece.double().square().sum() for piece in pieces]).tolist())


def is_finite(tensor: Tensor) -> bool:
    """Return whether no entry is NaN or infinite.

    Examples
    --------
    >>> is_finite(torch.tensor([1.0, float("nan")])), is_finite(torch.tensor([], dtype=torch.int64))
    (False, True)
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # One pass without a copy: NaN is both the smallest and the largest of its tensor.
    return all(bool(bound.isfinite()) for bound in tensor.aminmax())


def blocks(target: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching flat pieces, views of the target; all of it if it is not contiguous."""
    if not target.is_contiguous():
        yield target, *others
        return
    size = _GPU_BLOCK if target.is_cuda else BLOCK
    pieces = (torch.split(tensor.reshape(-1), size) for tensor in (target, *others))
    yield from zip(*pieces, strict=True)
