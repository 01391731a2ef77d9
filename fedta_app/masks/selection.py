"""The exact number of entries that come first: round, share out among layers, choose.

The entries of a mask are numbered by their position in the flat vector. Position breaks every tie,
so that a mask always has exactly the size asked for.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from operator import add
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedta_app.masks.rule import Entries, MaskRule

Scope = Literal["global", "layer"]

# Fine enough for any density a person types, coarse enough to read 0.1 where a float has
# 0.09999999999999998 (that is `1 - 0.9`).
_LARGEST_DENOMINATOR = 10**12


def round_density(sparsity: float, num_entries: int) -> int:
    """Return the number of trained entries at a sparsity: `round((1 - sparsity) * num_entries)`.

    The product is taken exactly, with the sparsity read as the nearest fraction that a person could
    have meant, and halves go to the even number as everywhere in Python: 15 entries at sparsity 0.9
    give `round(1.5) == 2`, where floats say `round((1 - 0.9) * 15) == 1`.

    Raises
    ------
    ValueError
        If the sparsity is outside [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity is {sparsity}; it must be between 0 and 1.")
    exact = Fraction(float(sparsity)).limit_denominator(_LARGEST_DENOMINATOR)
    return round((1 - exact) * num_entries)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split a total in proportion to integer weights by largest remainders, in exact arithmetic.

    No share exceeds its weight when the total does not exceed their sum. Ties go to the earlier.
    """
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


def select_smallest(values: Tensor, count: int, tie_break: Tensor | None = None) -> Tensor:
    """Return a boolean mask of the `count` smallest of a vector, ties broken by position.

    Parameters
    ----------
    values
        Vector on the CPU; float32, float64 or an integer type. NaN marks what is never chosen.
    count
        How many to choose, from 0 to the number of values that are not NaN.
    tie_break
        Vector like `values`: among equal values its smaller entry comes first, then position.

    Raises
    ------
    ValueError
        If there are fewer values than `count`.
    """
    if not 0 <= count <= values.numel():
        raise ValueError(f"count is {count}; it must be between 0 and {values.numel()}.")
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    # NumPy's selection is linear in the worst case; torch.kthvalue is quadratic on falling values.
    threshold = np.partition(values.numpy(), count - 1)[count - 1].item()
    chosen: Tensor = values < threshold
    tied = values == threshold
    missing = count - int(chosen.sum())
    if tie_break is None:
        chosen[tied.nonzero()[:missing, 0]] = True
    else:
        chosen[tied] = select_smallest(tie_break[tied], missing)
    return chosen


def select(
    rule: MaskRule,
    entries: Entries,
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    scope: str = "global",
    alive: Tensor | None = None,
) -> Tensor:
    """Return which of the N entries the rule trains, bool of shape (N,), on the CPU.

    Parameters
    ----------
    sparsity, threshold, scope
        As in `fedta_app.masks.build_mask`.
    alive : bool Tensor of shape (N,), optional
        The entries that may be chosen; all by default.

    Raises
    ------
    ValueError
        If an argument is missing, unknown, out of range, or does not fit the rule.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope is {scope!r}; it must be 'global' or 'layer'.")
    if (sparsity is None) == (threshold is None):
        raise ValueError(
            f"sparsity is {sparsity} and threshold is {threshold}; give exactly one of the two."
        )
    ranks = _ranks(rule, entries)
    alive = torch.ones_like(ranks, dtype=torch.bool) if alive is None else alive.cpu()
    if threshold is not None:
        return alive & _within(rule, ranks, threshold)
    assert sparsity is not None
    sizes = [ranks.numel()] if scope == "global" else list(entries.layout.sizes)
    return _select_alive(ranks, alive, sizes, sparsity)


def _ranks(rule: MaskRule, entries: Entries) -> Tensor:
    """Return one number per entry, float32 or float64; the rule trains the smallest."""
    if rule.needs_scores and entries.scores is None:
        raise ValueError(f"scores is None; the rule {rule.name!r} needs a score for every entry.")
    ranks = rule.rank(entries)
    if ranks.dtype not in (torch.float32, torch.float64):
        ranks = ranks.double()
    if ranks.isnan().any():
        name = next(
            name for name, view in entries.layout.views(ranks).items() if view.isnan().any()
        )
        raise ValueError(f"the rule {rule.name!r} ranks an entry of {name!r} by NaN, no number.")
    return ranks.neg() if rule.largest_first else ranks


def _within(rule: MaskRule, ranks: Tensor, threshold: float) -> Tensor:
    if not rule.takes_threshold or math.isnan(threshold):
        raise ValueError(
            f"threshold is {threshold} with the rule {rule.name!r}; it must be a number, "
            "and the rule must rank by sensitivities or magnitudes."
        )
    return ranks <= (-threshold if rule.largest_first else threshold)


def _select_alive(ranks: Tensor, alive: Tensor, sizes: list[int], sparsity: float) -> Tensor:
    """Choose the exact number of living entries that rank first, layer by layer of these sizes."""
    available = [int(layer.sum()) for layer in torch.split(alive, sizes)]
    total = round_density(sparsity, ranks.numel())
    if total > sum(available):
        raise ValueError(
            f"sparsity is {sparsity}, which trains {total} entries; alive has {sum(available)}."
        )
    counts = [min(pair) for pair in zip(apportion(total, sizes), available, strict=True)]
    # What a layer cannot take because too few of it are alive goes to layers with room.
    room = [most - count for most, count in zip(available, counts, strict=True)]
    counts = list(map(add, counts, apportion(total - sum(counts), room)))
    layers = torch.split(ranks.masked_fill(~alive, math.nan), sizes)
    return torch.cat(list(map(select_smallest, layers, counts)))
