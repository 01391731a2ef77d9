"""Pairwise comparisons of vectors and masks, as matrices with a row and a column per client.

Sign conflicts are those of Yadav et al., "TIES-Merging", NeurIPS 2023, arXiv 2306.01708.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_COLUMNS = 2**16  # coordinates compared at a time: 100 clients take 50 MB in float64


def cosine_matrix(vectors: Sequence[Tensor]) -> Tensor:
    """Return the cosines between n vectors (N,), as float64 (n, n) on the CPU.

    The row and column of a zero vector are NaN.

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

    For task vectors, pass `[task_vector.flat() for task_vector in task_vectors]`.
    """
    gram = _pair_sums(vectors, lambda block: block @ block.T)
    norms = gram.diagonal().sqrt()
    return (gram / torch.outer(norms, norms)).clamp_(-1, 1)


def sign_conflict_matrix(vectors: Sequence[Tensor]) -> Tensor:
    """Return the share of coordinates with different signs, among those where both are non-zero.

    The result is float64 (n, n) on the CPU. Unrelated vectors give about 0.5; a pair without a
    common non-zero coordinate gives NaN.

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
    """How much the masks of clients overlap.

    Attributes
    ----------
    jaccard : Tensor of shape (n, n), float64
        Size of the intersection over size of the union; NaN if both masks are empty.
    chance : float
        Mean over pairs of ``p q / (p + q - p q)``, the value of independent random masks of the
        same densities p and q; NaN if there is no pair.
    """

    jaccard: Tensor
    chance: float


def mask_overlap_matrix(masks: Sequence[Tensor]) -> MaskOverlap:
    """Return the Jaccard index of every two masks (N,), and its value by chance.

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
    """Return the sum of products(block) over float64 blocks (n, coordinates) of the vectors."""
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
