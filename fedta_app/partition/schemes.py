"""Splitting a training set over clients: iid, Nc classes per client, Dirichlet, or by nature.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017
(arXiv 1602.05629), section 3, for clients that hold few classes; Hsu, Qi and Brown, "Measuring the
Effects of Non-Identical Data Distribution", 2019 (arXiv 1909.06335), section 3, for Dirichlet.

In every scheme each training sample belongs to exactly one client. Client sizes differ by at most
one, unless `size_spread` asks for unequal ones, and except with "natural", where a client has as
many samples as it happens to have; with "classes" each client has exactly Nc distinct classes.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedta_app.errors import PartitionError
from fedta_app.partition.allocation import (
    FloatArray,
    IntArray,
    allocate_shares,
    split_in_proportion,
)
from fedta_app.seeding import checked_seed, numpy_generator

SCHEMES = ("iid", "classes", "dirichlet", "natural")
NODES = "nodes"  # no scheme: each node of a deployment has images of its own
MIN_ALPHA, MAX_ALPHA = 1e-6, 1e6  # beyond these only rounding errors change
MAX_SPREAD = 5.0  # beyond it nearly all samples lie on one client
NO_MASS = 1e-9  # a sum of proportions below this is rounding error


def partition(
    labels: npt.ArrayLike,
    num_clients: int,
    *,
    scheme: str,
    num_classes_per_client: int | None = None,
    alpha: float | None = None,
    size_spread: float = 0.0,
    clients: npt.ArrayLike | None = None,
    seed: int = 0,
) -> list[IntArray]:
    """Return the indices of the samples of each client.

    Parameters
    ----------
    labels : array-like of int, shape (N,)
        Class of every training sample.
    num_clients : int
        K, between 1 and N.
    scheme : {"iid", "classes", "dirichlet", "natural"}
        "iid": a random split. "classes": each client holds exactly `num_classes_per_client`
        classes, chosen at random; the number of clients that hold a class is proportional to its
        size. "dirichlet": the class proportions of a client are drawn from Dir(alpha * proportions
        of the training set); the clients, in random order, then draw samples without replacement,
        from the classes that have samples left. "natural": as `clients` says.
    num_classes_per_client : int, optional
        Nc, for "classes" only.
    alpha : float, optional
        Concentration, for "dirichlet" only: small values give few classes per client, large ones
        a split like "iid".
    size_spread : float
        From 0 to 5. 0: clients of equal size. Otherwise client sizes are proportional to a
        lognormal variable ``exp(size_spread * z)`` with z standard normal, and at least 1. With
        "classes" that holds within each class: the clients that hold it share it in these
        proportions, at least one sample each.
    clients : array-like of int, shape (N,), optional
        The client of every training sample, from 0 to K - 1, for "natural" only.
    seed : int
        Seed of the random choices.

    Returns
    -------
    list of K int64 arrays
        Indices of each client's samples, in ascending order.

    Raises
    ------
    PartitionError
        If an argument is out of range or no such split is found. One with Nc classes per client
        always exists if the classes are equally large, K * Nc is a multiple of their number, and a
        client has at least Nc samples.
    ValueError
        If the seed is not an integer.

    Examples
    --------
    >>> labels = np.repeat(np.arange(4), 6)  # six samples of each of four classes
    >>> parts = partition(labels, 6, scheme="classes", num_classes_per_client=2)
    >>> counts = class_counts(labels, parts, num_classes=4)
    >>> counts.sum(axis=1).tolist(), (counts > 0).sum(axis=1).tolist()
    ([4, 4, 4, 4, 4, 4], [2, 2, 2, 2, 2, 2])
    """
    classes = _class_indices(labels)
    _check_int("num_clients", num_clients, 1, len(classes), "training samples")
    rng = numpy_generator("partition", scheme, checked_seed(seed))
    weights = _size_weights(num_clients, size_spread, seed)
    slots = np.arange(len(classes)) % num_clients
    if weights is not None and scheme != "classes":
        slots = np.repeat(np.arange(num_clients), split_in_proportion(len(classes), weights))
    if scheme == "iid":
        owner = rng.permutation(slots)
    elif scheme == "classes":
        owner = _by_class(classes, num_clients, num_classes_per_client, rng, weights)
    elif scheme == "dirichlet":
        owner = _dirichlet(classes, np.bincount(slots), alpha, rng)
    elif scheme == "natural":
        owner = _natural(clients, len(classes), num_clients, size_spread)
    else:
        raise PartitionError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    by_client = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner, minlength=num_clients)
    return np.split(by_client, np.cumsum(sizes)[:-1])


def partition_digest(parts: Sequence[IntArray]) -> str:
    """Return the sha256 (hexadecimal) of a partition."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()


def class_counts(labels: npt.ArrayLike, parts: Sequence[IntArray], num_classes: int) -> IntArray:
    """Return the number of samples of each client and class, shape (K, num_classes)."""
    values = np.asarray(labels, dtype=np.int64)
    return np.stack([np.bincount(values[part], minlength=num_classes) for part in parts])


def _natural(clients: Any, total: int, num_clients: int, spread: float) -> IntArray:
    """Return the client of each sample, checked."""
    if spread:
        raise PartitionError(f"size_spread must be 0 with scheme 'natural', got {spread:g}")
    if clients is None:
        raise PartitionError("scheme 'natural' needs the clients of the samples, got none")
    owner = np.asarray(clients)
    if owner.shape != (total,) or not np.array_equal(np.unique(owner), np.arange(num_clients)):
        raise PartitionError(
            f"clients must name, for each of the {total} samples, a client from 0 to "
            f"{num_clients - 1}, and each of them at least once"
        )
    return owner.astype(np.int64)


def _class_indices(labels: npt.ArrayLike) -> IntArray:
    """Return the class of each sample; the classes that occur are renumbered from 0."""
    values = np.asarray(labels)
    if values.ndim != 1 or values.size == 0 or not np.issubdtype(values.dtype, np.integer):
        raise PartitionError(
            "labels must be a non-empty one-dimensional array of integers, "
            f"got shape {values.shape} and type {values.dtype}"
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _size_weights(num_clients: int, spread: Any, seed: int) -> FloatArray | None:
    """Return what the sizes of the clients are proportional to, (K,); None if they are equal."""
    number = isinstance(spread, int | float | np.number) and not isinstance(spread, bool)
    if not number or not 0 <= spread <= MAX_SPREAD:
        raise PartitionError(
            f"size_spread must be a number between 0 and {MAX_SPREAD:g}, got {spread!r}"
        )
    if spread == 0:
        return None
    rng = numpy_generator("client sizes", checked_seed(seed))
    weights: FloatArray = np.exp(spread * rng.standard_normal(num_clients))
    return weights


def _check_int(name: str, value: Any, low: int, high: int, what: str) -> int:
    """Return `value`, or raise unless it is an integer from `low` to `high`."""
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not integer or not low <= value <= high:
        raise PartitionError(
            f"{name} must be an integer between {low} and the {high} {what}, got {value!r}"
        )
    return int(value)


def _by_class(
    classes: IntArray,
    num_clients: int,
    each: Any,
    rng: np.random.Generator,
    weights: FloatArray | None,
) -> IntArray:
    """Return the client of each sample when every client holds exactly `each` classes."""
    counts = np.bincount(classes)
    name = "num_classes_per_client"
    each = _check_int(name, each, 1, len(counts), "classes of the training set")
    _check_int(name, each, 1, len(classes) // num_clients, "training samples of a client")
    if num_clients * each < len(counts):
        raise PartitionError(
            f"num_clients * {name} must be at least the {len(counts)} classes, so that every "
            f"class has a client, got {num_clients} * {each}"
        )
    if weights is not None and num_clients * each == len(counts):
        raise PartitionError(
            f"size_spread must be 0 when num_clients * {name} is the {len(counts)} classes: every "
            f"class then has one client, whose size follows, got {num_clients} * {each}"
        )
    shares = allocate_shares(counts, num_clients, each, rng, weights)
    if shares is None:
        size = "equally large " if weights is None else ""
        raise PartitionError(
            f"found no split of classes of {counts.min()} to {counts.max()} samples over "
            f"{num_clients} {size}clients of exactly {name}={each} classes: it exists for "
            f"equally large classes when num_clients * {name} is a multiple of the {len(counts)} "
            f"classes; else try a larger {name}"
        )
    return _deal(shares, classes, rng)


def _deal(shares: IntArray, classes: IntArray, rng: np.random.Generator) -> IntArray:
    """Return the client of each sample, at random, for given `shares` (K, C) of the classes."""
    owner = np.empty(len(classes), dtype=np.int64)
    clients = np.arange(len(shares))
    for number, column in enumerate(shares.T):
        owner[classes == number] = rng.permutation(np.repeat(clients, column))
    return owner


def _dirichlet(
    classes: IntArray, sizes: IntArray, alpha: Any, rng: np.random.Generator
) -> IntArray:
    """Return the client of each sample when class proportions are drawn from a Dirichlet."""
    number = isinstance(alpha, int | float | np.number) and not isinstance(alpha, bool)
    if not number or not MIN_ALPHA <= alpha <= MAX_ALPHA:
        raise PartitionError(
            f"alpha must be a number between {MIN_ALPHA:g} and {MAX_ALPHA:g}, got {alpha!r}"
        )
    left = np.bincount(classes)
    concentration = alpha * left / left.sum()
    shares = np.zeros((len(sizes), len(left)), dtype=np.int64)
    for client in rng.permutation(len(sizes)):
        shares[client] = _draw(concentration, int(sizes[client]), left, rng)
        left = left - shares[client]
    return _deal(shares, classes, rng)


def _draw(
    concentration: npt.NDArray[np.float64], size: int, left: IntArray, rng: np.random.Generator
) -> IntArray:
    """Return how many of `size` samples are of each class, shape (C,), at most `left` (C,)."""
    proportions = rng.dirichlet(concentration)
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        available = taken < left
        weights = np.where(available, proportions, 0.0)
        if weights.sum() < NO_MASS:
            # The proportions of the available classes were lost to rounding. Relative to their
            # sum they follow a Dirichlet that is independent of the sum, so draw that one.
            weights[available] = rng.dirichlet(concentration[available])
            proportions = weights
        drawn = rng.multinomial(missing, weights / weights.sum())
        taken = np.minimum(taken + drawn, left)
    return taken
