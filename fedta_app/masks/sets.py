"""Masks as sets of coordinates: exact sizes, set operations, agreement by vote, bits on the wire.

A mask maps parameter names to boolean tensors, True where the entry is trained. The coordinates of
a mask are numbered by their flat position: the tensors in the order of the mapping, each in row
order. Position breaks every tie, so that a mask always has exactly the size asked for.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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


def flatten(tensors: Mapping[str, Tensor], names: Iterable[str] | None = None) -> Tensor:
    """Return a copy of the entries as one vector on the CPU (every device then selects the same).

    `names` gives the order of the tensors; by default that of the mapping.
    """
    chosen = list(tensors if names is None else names)
    if not chosen:
        raise ValueError("the mapping of tensors is empty; it needs at least one parameter.")
    return torch.cat([tensors[name].detach().reshape(-1).cpu() for name in chosen])


def unflatten(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut a vector in flat order into tensors with the names, shapes and devices of `like`."""
    pieces = torch.split(flat, [tensor.numel() for tensor in like.values()])
    return {
        name: piece.reshape(tensor.shape).to(tensor.device, copy=True)
        for (name, tensor), piece in zip(like.items(), pieces, strict=True)
    }


def check_alike(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], argument: str) -> None:
    """Refuse a mapping that lacks a name of `like` or has another shape there.

    Raises
    ------
    ValueError
        Naming the argument and the first parameter that does not fit.
    """
    for name, tensor in like.items():
        if name not in tensors:
            raise ValueError(f"{argument} has no entry for parameter {name!r}; it must have one.")
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"{argument}[{name!r}] has shape {tuple(tensors[name].shape)}; "
                f"it must have the shape {tuple(tensor.shape)}."
            )


def check_mask(
    mask: Mapping[str, Tensor], like: Mapping[str, Tensor], argument: str = "mask"
) -> None:
    """Refuse a mask that is not boolean or has not exactly the names and shapes of `like`.

    Raises
    ------
    ValueError
        Naming the argument and the first parameter that does not fit.
    """
    check_alike(mask, like, argument)
    for name, tensor in mask.items():
        if name not in like:
            raise ValueError(f"{argument} has an entry for {name!r}, which is no such parameter.")
        if tensor.dtype != torch.bool:
            raise ValueError(f"{argument}[{name!r}] is {tensor.dtype}; it must be torch.bool.")


def density(mask: Mapping[str, Tensor]) -> float:
    """Return the share of entries that the mask trains, in [0, 1]."""
    total = sum(tensor.numel() for tensor in mask.values())
    if total == 0:
        raise ValueError("the mask has no entries; its density is undefined.")
    return sum(int(tensor.sum()) for tensor in mask.values()) / total


def jaccard(mask_a: Mapping[str, Tensor], mask_b: Mapping[str, Tensor]) -> float:
    """Return the overlap of two masks: the size of their intersection over that of their union.

    In [0, 1]; two empty masks overlap fully. Compare with `expected_jaccard`.
    """
    check_mask(mask_b, mask_a, "mask_b")
    both = sum(int((mask_a[name] & mask_b[name]).sum()) for name in mask_a)
    either = sum(int((mask_a[name] | mask_b[name]).sum()) for name in mask_a)
    return both / either if either else 1.0


def expected_jaccard(density_a: float, density_b: float) -> float:
    """Return the overlap that two independent random masks of these densities have by chance.

    The ratio of the expected sizes, which many entries approach: ab / (a + b - ab).
    """
    both = density_a * density_b
    either = density_a + density_b - both
    return both / either if either else 1.0


def union_mask(masks: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mask of what any of the masks trains, holding one mask at a time."""
    return _fold(masks, Tensor.logical_or_)


def intersection_mask(masks: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mask of what all masks train, holding one mask at a time."""
    return _fold(masks, Tensor.logical_and_)


def vote_mask(
    masks: Iterable[Mapping[str, Tensor]],
    *,
    sparsity: float,
    scores: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the mask of the entries with most votes, at exactly the requested density.

    The masks are consumed one at a time; only one int32 counter per entry is kept.

    Parameters
    ----------
    masks
        One mask per client, all of the same names and shapes.
    sparsity
        Frozen share of the result, see `round_density`.
    scores
        Breaks ties between equal votes: the smaller score is trained (negate it for a rule that
        prefers large scores). Position breaks the ties that remain.

    Raises
    ------
    ValueError
        If there is no mask, if two differ in names or shapes, or if a score is NaN.
    """
    first, rest = _first_and_rest(masks)
    against = flatten(first).int().neg_()
    for mask in rest:
        against -= flatten(mask, first).int()
    count = round_density(sparsity, against.numel())
    if scores is None:
        return unflatten(select_smallest(against, count), first)
    check_alike(scores, first, "scores")
    ranks = flatten(scores, first)
    if ranks.isnan().any():
        raise ValueError("scores contains NaN; every score must be a number or infinite.")
    return unflatten(select_smallest(against, count, ranks), first)


def pack_mask(mask: Mapping[str, Tensor]) -> npt.NDArray[np.uint8]:
    """Return the mask as bits in flat order, eight entries to a byte, the last byte zero-filled."""
    check_mask(mask, mask)
    return np.packbits(flatten(mask).numpy())


def unpack_mask(
    bits: npt.NDArray[np.uint8], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return the mask that `pack_mask` made bits of, on the CPU.

    Parameters
    ----------
    bits
        What `pack_mask` returned.
    shapes
        Name -> shape, in the same order as in the packed mask (that of the model's parameters).

    Raises
    ------
    ValueError
        If the number of bytes does not fit the shapes.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    num_bytes = (sum(sizes) + 7) // 8
    if bits.dtype != np.uint8 or bits.shape != (num_bytes,):
        raise ValueError(
            f"bits is {bits.dtype} of shape {bits.shape}; these shapes need uint8 ({num_bytes},)."
        )
    flat = torch.from_numpy(np.unpackbits(bits, count=sum(sizes))).bool()
    return {
        name: piece.reshape(tuple(shape)).clone()
        for (name, shape), piece in zip(shapes.items(), torch.split(flat, sizes), strict=True)
    }


def _first_and_rest(
    masks: Iterable[Mapping[str, Tensor]],
) -> tuple[Mapping[str, Tensor], Iterator[Mapping[str, Tensor]]]:
    """Take the first mask off, and check each of the others against it as it comes."""
    iterator = iter(masks)
    first = next(iterator, None)
    if first is None:
        raise ValueError("masks is empty; there must be at least one mask.")
    check_mask(first, first, "masks[0]")
    return first, (_checked(i, mask, first) for i, mask in enumerate(iterator, start=1))


def _checked(
    index: int, mask: Mapping[str, Tensor], first: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    check_mask(mask, first, f"masks[{index}]")
    return mask


def _fold(
    masks: Iterable[Mapping[str, Tensor]], combine: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    first, rest = _first_and_rest(masks)
    result = {name: tensor.clone() for name, tensor in first.items()}
    for mask in rest:
        for name, tensor in result.items():
            combine(tensor, mask[name])
    return result
