"""How vectors and masks of several clients relate: matrices with a row and a column per client.

Sign conflicts are those of Yadav et al., TIES-Merging, NeurIPS 2023, arXiv 2306.01708.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_COLUMNS = 2**16  # coordinates compared at a time: 100 clients take 50 MB in float64


def cosine_matrix(vectors: Sequence[Tensor]) -> Tensor:
    """Return the cosines between vectors of shape (N,), float64 of shape (n, n) on the CPU.

    NaN in the row and column of a vector that is zero everywhere: it has no direction.

    Raises
    ------
    ValueError
        If there are no vectors, or their shapes differ.

    Examples
    --------
    >>> import torch
    >>> from fedta_app.analysis import cosine_matrix
    >>> updates = [torch.tensor([3.0, 4.0]), torch.tensor([-6.0, -8.0]), torch.tensor([4.0, -3.0])]
    >>> cosine_matrix(updates).tolist()
    [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Task vectors by name are compared in their flat form: `[task.flat() for task in tasks]`.
    """
    gram = _pair_sums(vectors, lambda block: block @ block.T)
    norms = gram.diagonal().sqrt()
    return (gram / torch.outer(norms, norms)).clamp_(-1, 1)


def sign_conflict_matrix(vectors: Sequence[Tensor]) -> Tensor:
    """Return the share of coordinates whose signs differ, among those where both are non-zero.

    Float64 of shape (n, n) on the CPU; unrelated vectors give 0.5, and a pair without a common
    non-zero coordinate NaN.

    Raises
    ------
    ValueError
        If there are no vectors, or their shapes differ.
    """

    def conflicts(block: Tensor) -> Tensor:
        signs = block.sign()
        both = signs.abs() @ signs.abs().T
        return torch.stack([(both - signs @ signs.T) / 2, both])

    pairs = _pair_sums(vectors, conflicts)
    return pairs[0] / pairs[1]


class MaskOverlap(NamedTuple):
    """How much the trained sets of clients overlap.

    Attributes
    ----------
    jaccard : Tensor of shape (n, n), float64
        Entries both train over entries either trains; NaN if neither trains any.
    chance : float
        What independent uniformly random masks of the same densities p, q would have,
        ``p q / (p + q - p q)``, mean over the pairs; NaN if there is no pair.
    """

    jaccard: Tensor
    chance: float


def mask_overlap_matrix(masks: Sequence[Tensor]) -> MaskOverlap:
    """Return the Jaccard index of every two boolean vectors (N,), and its value by chance.

    Raises
    ------
    ValueError
        If there are no masks, or their shapes differ.
    """
    common = _pair_sums(masks, lambda block: block @ block.T)
    size = common.diagonal()
    jaccard = common / (size[:, None] + size[None, :] - common)
    density = size / masks[0].numel()
    first, second = torch.triu_indices(len(masks), len(masks), offset=1)
    product = density[first] * density[second]
    chance = product / (density[first] + density[second] - product)
    return MaskOverlap(jaccard, float(chance.nanmean()))


def _pair_sums(vectors: Sequence[Tensor], products: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum products(block) over blocks of coordinates, each float64 of shape (n, coordinates)."""
    if not vectors:
        raise ValueError("there are no vectors or masks to compare; at least one is needed")
    for vector in vectors:
        if vector.shape != (vectors[0].numel(),):
            raise ValueError(
                f"a vector has shape {tuple(vector.shape)}; all must have ({vectors[0].numel()},)"
            )
    total = torch.zeros((), dtype=torch.float64)
    for columns in zip(*(torch.split(vector, _COLUMNS) for vector in vectors), strict=True):
        block = torch.stack([column.detach().double() for column in columns])
        total = total + products(block).cpu()
    return total
