"""Means of named client updates, and the step that applies one to the global weights.

An update is ``{name: tensor}``, local minus global. Updates are averaged, never models: the mean
of ten equal float32 models differs from them in a third of the weights by one unit in the last
place, while ten zero updates leave every bit. A run works on flat vectors, with the accumulators of
:mod:`fedta_app.aggregation.accumulators`; these functions do the same, tensor by tensor.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from fedta_app.aggregation.accumulators import (
    MaskedMeanAccumulator,
    MeanAccumulator,
    SignElectedMeanAccumulator,
    check_mask,
    check_update,
)
from fedta_app.vectors.arithmetic import blocks, stepped

Update = Mapping[str, Tensor]
Mask = Mapping[str, Tensor]


def mean_update(updates: Iterable[Update], weights: Iterable[float]) -> dict[str, Tensor]:
    """Return the weighted mean of the updates over everybody.

    Parameters
    ----------
    updates : Iterable[Mapping[str, Tensor]]
        Floating tensors, the same names, shapes and dtypes in each. May be a generator: each update
        is read once and can be freed.
    weights : Iterable[float]
        One per update, at least zero, for example numbers of examples; not all zero.

    Raises
    ------
    ValueError
        If there are no updates, they differ in names, shapes or dtypes, or weights do not fit.

    Examples
    --------
    >>> updates = [{"a": torch.tensor([1.0, 4.0])}, {"a": torch.tensor([5.0, -4.0])}]
    >>> mean_update(updates, weights=[300, 100])
    {'a': tensor([2., 2.])}
    """
    return _accumulate(MeanAccumulator, _together(updates, weights))


def masked_mean_update(
    updates: Iterable[Update],
    masks: Iterable[Mask],
    weights: Iterable[float],
    *,
    coverage_exponent: float = 1.0,
) -> dict[str, Tensor]:
    """Return the weighted mean per entry over those who trained it, 0 where nobody did.

    Parameters
    ----------
    updates, weights
        As for :func:`mean_update`, which also has the errors.
    masks : Iterable[Mapping[str, Tensor]]
        One per update: bool tensors shaped like the update's, True = trained; a missing name was
        trained whole.
    coverage_exponent : float
        Below 1, what few trained shrinks: the equation is in
        :class:`~fedta_app.aggregation.accumulators.MaskedMeanAccumulator`.

    Examples
    --------
    Both clients trained the first entry, only one the second:

    >>> updates = [{"a": torch.tensor([2.0, 8.0])}, {"a": torch.tensor([4.0, 6.0])}]
    >>> masks = [{"a": torch.tensor([True, True])}, {"a": torch.tensor([True, False])}]
    >>> masked_mean_update(updates, masks, weights=[1, 3])
    {'a': tensor([3.5000, 8.0000])}
    """
    return _accumulate(
        lambda: MaskedMeanAccumulator(coverage_exponent), _together(updates, weights, masks)
    )


def sign_elected_mean_update(
    updates: Iterable[Update], weights: Iterable[float], masks: Iterable[Mask] | None = None
) -> dict[str, Tensor]:
    """Return the weighted mean over those who agree with the elected sign (TIES-Merging).

    See :class:`~fedta_app.aggregation.accumulators.SignElectedMeanAccumulator`; arguments and
    errors are those of :func:`masked_mean_update`.
    """
    others = (weights,) if masks is None else (weights, masks)
    return _accumulate(SignElectedMeanAccumulator, _together(updates, *others))


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

    Examples
    --------
    >>> weights = {"a": torch.tensor([1.0, 2.0])}
    >>> apply_update(weights, {"a": torch.tensor([4.0, 4.0])}, scale=0.5,
    ...              mask={"a": torch.tensor([True, False])})
    >>> weights
    {'a': tensor([3., 2.])}
    """
    masks = mask or {}
    for name, change in update.items():
        if name not in global_:
            raise ValueError(f"update has {name!r}, which the global weights lack")
        check_update(change, global_[name], f"update[{name!r}]")
    _check_masks(masks, update)
    for name, change in update.items():
        if name in masks:
            for value, part, trained in blocks(global_[name], change, masks[name]):
                value.copy_(torch.where(trained, stepped(value, part, scale), value))
        else:
            for value, part in blocks(global_[name], change):
                value.copy_(stepped(value, part, scale))


def _accumulate(
    make: Callable[[], Any], clients: Iterator[tuple[Update, float, Mask]]
) -> dict[str, Tensor]:
    """Return the means of the clients' (update, weight, mask), an accumulator per name."""
    accumulators: dict[str, Any] = {}
    for update, weight, mask in clients:
        _check_masks(mask, update)
        accumulators = accumulators or {name: make() for name in update}
        if update.keys() != accumulators.keys():
            odd = sorted(update.keys() ^ accumulators.keys())
            raise ValueError(f"updates differ in their names, at {odd[0]!r}; all must share them")
        for name, value in update.items():
            masks = (mask[name],) if name in mask else ()
            accumulators[name].add(value, weight, *masks)
    if not accumulators:
        raise ValueError("there is no update, so none has a positive weight")
    return {name: accumulator.result() for name, accumulator in accumulators.items()}


def _check_masks(masks: Mask, update: Update) -> None:
    for name, entry in masks.items():
        if name not in update:
            raise ValueError(f"mask has {name!r}, which the update lacks")
        check_mask(entry, update[name], f"mask[{name!r}]")


def _together(
    updates: Iterable[Update], weights: Iterable[float], masks: Iterable[Mask] | None = None
) -> Iterator[tuple[Update, float, Mask]]:
    missing = object()
    others = (weights,) if masks is None else (weights, masks)
    for update, weight, *mask in zip_longest(updates, *others, fillvalue=missing):
        if any(one is missing for one in (update, weight, *mask)):
            raise ValueError("updates, weights and masks differ in number; each update needs one")
        yield update, weight, mask[0] if mask else {}
