"""One mask from those of several clients: union, intersection, vote."""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from fedta_app.masks.selection import round_density, select_smallest
from fedta_app.vectors import FlatMask


def union(masks: Iterable[FlatMask]) -> FlatMask:
    """Return the mask of what any of the masks trains, holding one mask at a time."""
    return FlatMask(reduce(torch.logical_or, (mask.mask for mask in masks)))


def intersection(masks: Iterable[FlatMask]) -> FlatMask:
    """Return the mask of what all masks train, holding one mask at a time."""
    return FlatMask(reduce(torch.logical_and, (mask.mask for mask in masks)))


def vote(masks: Iterable[FlatMask], *, sparsity: float, order: Tensor | None = None) -> FlatMask:
    """Return the mask of the entries with most votes, at exactly the requested density.

    The masks are read one at a time; only one int32 counter per entry is kept.

    Parameters
    ----------
    masks : iterable of FlatMask
        One mask per client, at least one.
    sparsity : float
        Frozen share of the result, see `round_density`.
    order : Tensor of shape (N,), optional
        On the CPU. Breaks ties between equal votes: the smaller number is trained. Position
        breaks the ties that remain.
    """
    votes = reduce(torch.add, (mask.mask.int() for mask in masks))
    count = round_density(sparsity, votes.numel())
    return FlatMask(select_smallest(votes.neg().cpu(), count, order).to(votes.device))
