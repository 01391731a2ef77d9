r"""Images that all clients share, beside those that each holds alone.

Zhao et al., "Federated Learning with Non-IID Data", 2018, arXiv 1806.00582, section 4: a set G of
images that anybody may hold is taken out of the training images before the others are divided among
the clients, and each client gets a random portion of G, the same in all rounds. The paper's
:math:`\beta` is the size of G over that of all other training images; here the share is of all
training images, G included. What sharing repairs the paper measures by `label_distances`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedta_app.errors import PartitionError
from fedta_app.partition.allocation import FloatArray, IntArray
from fedta_app.partition.schemes import partition
from fedta_app.seeding import checked_seed, numpy_generator


def partition_with_shared(
    labels: npt.ArrayLike,
    num_clients: int,
    *,
    shared_fraction: float = 0.0,
    shared_portion: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> list[IntArray]:
    """Return the indices of the samples of each client, of which some are shared.

    Parameters
    ----------
    labels : array-like of int, shape (N,)
        Class of every training sample.
    num_clients : int
        K, between 1 and the number of samples that are not shared.
    shared_fraction : float
        Share of the samples of each class, drawn at random, that are in G; from 0 to below 1. With
        0 this is `fedta_app.partition.partition`. Classes of equal size stay equal.
    shared_portion : float
        Share of G, drawn for each client, that it gets; above 0, at most 1.
    seed : int
        Seed of the random choices.
    **options
        Those of `fedta_app.partition.partition`, which divides the samples that are not in G.

    Returns
    -------
    list of K int64 arrays
        Indices of each client's samples, in ascending order.

    Raises
    ------
    PartitionError
        If the shares leave no shared sample, or as `partition` does.

    Examples
    --------
    >>> labels = np.repeat(np.arange(2), 5)
    >>> parts = partition_with_shared(
    ...     labels, 2, scheme="classes", num_classes_per_client=1, shared_fraction=0.2
    ... )
    >>> [len(part) for part in parts], len(np.intersect1d(*parts))
    ([6, 6], 2)
    """
    if not shared_fraction:
        return partition(labels, num_clients, seed=seed, **options)
    if options.get("scheme") == "natural":
        raise PartitionError(
            f"shared_fraction must be 0 with scheme 'natural', got {shared_fraction:g}"
        )
    values = np.asarray(labels)
    rng = numpy_generator("shared samples", checked_seed(seed))
    is_shared = np.zeros(len(values), dtype=bool)
    for label in np.unique(values):
        found = rng.permutation(np.flatnonzero(values == label))
        is_shared[found[: round(shared_fraction * len(found))]] = True
    shared, own = np.flatnonzero(is_shared), np.flatnonzero(~is_shared)
    each = round(shared_portion * len(shared))
    if not each:
        raise PartitionError(
            f"shared_fraction = {shared_fraction:g} and shared_portion = {shared_portion:g} of "
            f"{len(values)} training samples are none for a client: one of them must be larger"
        )
    parts = []
    for client, part in enumerate(partition(values[own], num_clients, seed=seed, **options)):
        drawn = numpy_generator("portion of shared samples", seed, client).permutation(shared)
        parts.append(np.sort(np.concatenate([own[part], drawn[:each]])))
    return parts


def counted_once(parts: Sequence[IntArray], client: int, asked: Iterable[int]) -> IntArray:
    """Return those of a client's samples that no client before it holds, of those that are asked.

    Sums over clients that are meant to be sums over samples count these only.

    Examples
    --------
    >>> parts = [np.array([0, 1]), np.array([1, 2]), np.array([0, 3])]
    >>> [counted_once(parts, client, range(3)).tolist() for client in range(3)]
    [[0, 1], [2], [3]]
    >>> counted_once(parts, 2, asked=[1, 2]).tolist()
    [0, 3]
    """
    own = parts[client]
    before = [parts[other] for other in asked if other < client]
    return own[~np.isin(own, np.concatenate(before))] if before else own


def label_distances(counts: IntArray) -> FloatArray:
    """Return how far the labels of each client are from those of all clients, (K,).

    The sum over classes of :math:`|p_k(c) - p(c)|`, for the proportions of client k and the mean of
    them by samples, which Zhao et al. call the earth mover's distance: from 0 to below 2.

    Parameters
    ----------
    counts : int array, shape (K, C)
        Samples of each client and class, as `fedta_app.partition.class_counts` returns them.

    Examples
    --------
    >>> label_distances(np.array([[5, 5], [0, 10], [10, 0]])).tolist()
    [0.0, 1.0, 1.0]
    """
    own = counts / counts.sum(axis=1, keepdims=True)
    distances: FloatArray = np.abs(own - counts.sum(axis=0) / counts.sum()).sum(axis=1)
    return distances
