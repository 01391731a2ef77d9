"""Means of client updates, and the step that applies them to the global weights.

An update is ``{name: tensor}``, local minus global. Updates are averaged, never models: the mean
of ten equal float32 models differs from them in a third of the weights by one unit in the last
place, while ten zero updates leave every bit. The means, their papers, and what is exact in them
are in :mod:`fedta_app.aggregation.accumulators`, which a server uses directly when replies arrive
one by one.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor

from fedta_app.aggregation.accumulators import (
    Mask,
    MaskedMeanAccumulator,
    MeanAccumulator,
    SignElectedMeanAccumulator,
    Update,
    check_mask,
    check_update,
)
from fedta_app.vectors.arithmetic import blocks, stepped

S = TypeVar("S")
T = TypeVar("T")


def mean_update(updates: Iterable[Update], weights: Iterable[float]) -> dict[str, Tensor]:
    """Return the weighted mean of the updates over everybody; see :class:`MeanAccumulator`.

    Parameters
    ----------
    updates : Iterable[Mapping[str, Tensor]]
        May be a generator: each update is read once and can be freed.
    weights : Iterable[float]
        One per update, at least zero, for example numbers of examples; not all zero.

    Raises
    ------
    ValueError
        If there are no updates, they differ in names, shapes or dtypes, or weights do not fit.
    """
    accumulator = MeanAccumulator()
    for update, weight in _together(updates, weights):
        accumulator.add(update, weight)
    return accumulator.result()


def masked_mean_update(
    updates: Iterable[Update],
    masks: Iterable[Mask],
    weights: Iterable[float],
    *,
    coverage_exponent: float = 1.0,
) -> dict[str, Tensor]:
    """Return the weighted mean per coordinate over those who trained it, 0 where nobody did.

    ``coverage_exponent`` below 1 shrinks what few trained; the equation is in
    :class:`MaskedMeanAccumulator`. Errors are those of :func:`mean_update`.
    """
    accumulator = MaskedMeanAccumulator(coverage_exponent)
    for (update, weight), mask in _together(_together(updates, weights), masks):
        accumulator.add(update, weight, mask)
    return accumulator.result()


def sign_elected_mean_update(
    updates: Iterable[Update], weights: Iterable[float], masks: Iterable[Mask] | None = None
) -> dict[str, Tensor]:
    """Return the weighted mean over those who agree with the elected sign (TIES-Merging).

    See :class:`SignElectedMeanAccumulator`. Errors are those of :func:`mean_update`.
    """
    accumulator = SignElectedMeanAccumulator()
    if masks is None:
        for update, weight in _together(updates, weights):
            accumulator.add(update, weight)
    else:
        for (update, weight), mask in _together(_together(updates, weights), masks):
            accumulator.add(update, weight, mask)
    return accumulator.result()


@torch.no_grad()
def apply_update(
    global_: Mapping[str, Tensor],
    update: Update,
    *,
    scale: float = 1.0,
    mask: Mask | None = None,
) -> None:
    """Add scale * update in place to the trained entries of the global weights.

    An entry keeps its bits, -0.0 and NaN included, where the mask is False or the update is zero.

    Parameters
    ----------
    global_ : Mapping[str, Tensor]
        Weights; tensors that the update does not name are left alone.
    update : Mapping[str, Tensor]
        Shapes and dtypes of the weights it names.
    mask : Mapping[str, Tensor], optional
        Bool tensors, True = trained; a missing name is trained whole.

    Raises
    ------
    ValueError
        If the update names an unknown weight, or shapes or dtypes disagree.
    """
    for name in update:
        if name not in global_:
            raise ValueError(f"update has {name!r}, which the global weights lack")
    check_update(update, {name: global_[name] for name in update})
    check_mask(mask or {}, update)
    for name, change in update.items():
        if mask and name in mask:
            for value, part, trained in blocks(global_[name], change, mask[name]):
                value.copy_(torch.where(trained, stepped(value, part, scale), value))
        else:
            for value, part in blocks(global_[name], change):
                value.copy_(stepped(value, part, scale))


def _together(first: Iterable[T], second: Iterable[S]) -> Iterator[tuple[T, S]]:
    missing = object()
    for one, other in zip_longest(first, second, fillvalue=missing):
        if one is missing or other is missing:
            raise ValueError("updates, weights and masks differ in number; each update needs one")
        yield one, other  # type: ignore[misc]
