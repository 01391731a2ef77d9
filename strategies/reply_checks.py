"""What a client's reply has to be before anything of it is added to a sum.

A reply may come from a broken client, or from a hostile one. It is checked as a whole: names,
types, shapes and values. One that does not fit is left out, and the round goes on with the others;
the error says what is wrong in one sentence that follows "client 7 sent".
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from flwr.app import Message
from torch import Tensor

from fedta_app.errors import RunError
from fedta_app.heads.ridge import RidgeStatistics
from fedta_app.vectors.arithmetic import is_finite

_MOST_STEPS = 2**31
_LARGEST_LOSS = 1e12  # of a model that has not diverged; sums over a round stay finite

Check = Callable[[int, Message, Mapping[str, Tensor]], None]


class ReplyError(ValueError):
    """A reply that cannot be used."""


class NotFiniteError(ReplyError):
    """A reply with a number that is not finite, or nearly so, as when training diverged."""


class TooFewClientsError(RunError):
    """Too few replies of a round were good."""


class Trained(NamedTuple):
    """What a client says of its training besides the update.

    Attributes
    ----------
    num_examples : int
    steps : int
    loss : float
        Mean over its training.
    start_loss : float
        At the weights that training started from, where the algorithm asks for it.
    """

    num_examples: int
    steps: int
    loss: float
    start_loss: float


def check_vectors(
    vectors: Mapping[str, Tensor], sizes: Mapping[str, int], dtype: torch.dtype
) -> None:
    """Raise ReplyError unless the vectors have these names and lengths, and finite values.

    Examples
    --------
    >>> check_vectors({"vector": torch.zeros(3)}, {"vector": 4}, torch.float32)
    Traceback (most recent call last):
        ...
    strategies.reply_checks.ReplyError: 'vector' as torch.float32 of shape (3,), not torch.float32 of shape (4,)
    """  # noqa: E501
    if odd := sorted(vectors.keys() ^ sizes.keys()):
        what = "no vector" if odd[0] in sizes else "an unknown vector"
        raise ReplyError(f"{what} {reprlib.repr(odd[0])}")
    for name, vector in vectors.items():
        if vector.dtype != dtype or vector.shape != (sizes[name],):
            raise ReplyError(
                f"{name!r} as {vector.dtype} of shape {tuple(vector.shape)}, not {dtype} of shape "
                f"({sizes[name]},)"
            )
        if not is_finite(vector):
            raise NotFiniteError(f"{name!r} with numbers that are not finite")


def only_vector(vectors: Mapping[str, Tensor]) -> Tensor:
    """Return the vector of a reply that has to carry one; raise ReplyError if it does not."""
    if set(vectors) != {"vector"}:
        raise ReplyError(f"the vectors {sorted(vectors)}, not one vector 'vector'")
    return vectors["vector"]


def check_training(
    reply: Message, *, most_examples: int, steps_of: Callable[[int], int]
) -> Trained:
    """Return what the client says of its training.

    Parameters
    ----------
    most_examples : int
        That the client has.
    steps_of : callable
        Returns how many steps the client has to take with so many examples, 0 for any number:
        FedNova and SCAFFOLD divide its update by what it says of them.

    Raises
    ------
    ReplyError
        If a number is missing, or is not what the run allows.
    """
    metrics: Mapping[str, Any] = reply.content.metric_records.get("metrics", {})
    examples = _whole(metrics, "num-examples", most_examples)
    steps = steps_of(examples)
    start_loss = _finite(metrics, "start-loss")
    if start_loss < 0:
        raise ReplyError(f"start-loss = {start_loss:g}; no cross-entropy is negative")
    return Trained(
        examples,
        _whole(metrics, "num-steps", steps or _MOST_STEPS, least=steps or 1),
        _finite(metrics, "train-loss"),
        start_loss,
    )


def _finite(metrics: Mapping[str, Any], name: str) -> float:
    value = metrics.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReplyError(f"{name} = {reprlib.repr(value)}, which is no number")
    if not math.isfinite(value):
        raise NotFiniteError(f"{name} = {value}")
    if abs(value) > _LARGEST_LOSS:
        raise NotFiniteError(f"{name} = {value}; no loss is beyond {_LARGEST_LOSS:g}")
    return float(value)


def _whole(metrics: Mapping[str, Any], name: str, most: int, *, least: int = 1) -> int:
    value = metrics.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        said = reprlib.repr(value)
        raise ReplyError(f"{name} = {said}, which is no whole number from {least} to {most}")
    return value


def check_counts(counts: Tensor, num_classes: int, most_examples: int) -> None:
    """Raise ReplyError unless counts are a client's numbers of images of each class, (C,)."""
    check_vectors({"counts": counts}, {"counts": num_classes}, torch.int64)
    # Each by itself first: the sum of two large ones would be a small one.
    odd = (counts < 0) | (counts > most_examples)
    if odd.any() or not 1 <= int(counts.sum()) <= most_examples:
        raise ReplyError(f"class counts that are not those of 1 to {most_examples} images")


def check_scores(scores: Tensor, size: int, length: int) -> None:
    """Raise ReplyError unless scores are finite, and the first `size`, sensitivities, not negative.

    Parameters
    ----------
    length : int
        Of all scores: a rule's statistic comes after the sensitivities.
    """
    check_vectors({"scores": scores}, {"scores": length}, torch.float32)
    if (lowest := float(scores[:size].min())) < 0:
        raise ReplyError(f"a sensitivity of {lowest:g}; none is negative")


def check_mask(bits: Tensor, size: int, trained: int | None) -> None:
    """Raise ReplyError unless these are the bits of a mask over `size` entries.

    Parameters
    ----------
    bits : uint8 Tensor of shape (ceil(size / 8),)
    trained : int or None
        How many entries the mask has to train; None for any number.
    """
    ones = torch.tensor([byte.bit_count() for byte in range(256)])
    check_vectors({"mask": bits}, {"mask": -(-size // 8)}, torch.uint8)
    found = int(ones[bits.long()].sum())
    spare = -size % 8  # bits of the last byte that belong to no entry
    if spare and int(bits[-1]) % 2**spare:
        raise ReplyError(f"a mask with bits beyond its {size} entries")
    if not found:
        raise ReplyError("a mask that trains nothing")
    if trained is not None and found != trained:
        raise ReplyError(f"a mask that trains {found} entries, not {trained}")


def check_statistics(
    statistics: RidgeStatistics, most_examples: int, longest: float = math.inf
) -> None:
    """Raise ReplyError unless sums of features can come from examples.

    The class counts are whole numbers; a class without examples has no sum of features; the Gram
    matrix is positive semidefinite up to rounding, and no smaller than the outer products of the
    class sums over their counts, since ``sum_i x_i x_i^T - s s^T / n`` is a scatter matrix. Its
    trace is the sum of the squared lengths of the features.

    Parameters
    ----------
    most_examples : int
        That the client has.
    longest : float
        The largest mean square of the length of features.
    """
    counts, sums = statistics.class_counts, statistics.class_sums
    # None at all, where the head is made from a share of the images, and none of them is here.
    if (counts < 0).any() or (counts != counts.round()).any() or counts.sum() > most_examples:
        raise ReplyError(
            f"class counts that are not whole numbers of at most {most_examples} images together"
        )
    if sums[counts == 0].any():
        raise ReplyError("a sum of features for a class of which it has no image")
    scatter = statistics.gram - (sums / counts.clamp(min=1)[:, None]).T @ sums
    rounding = 1e-9 * float(statistics.gram.diagonal().abs().max()) + 1e-30
    _, failed = torch.linalg.cholesky_ex(scatter + rounding * torch.eye(len(scatter)).double())
    if failed:
        raise ReplyError("a Gram matrix that no features have: it is not positive semidefinite")
    if (square := float(statistics.gram.trace() / counts.sum().clamp(min=1))) > longest:
        raise ReplyError(
            f"features whose lengths have a mean square of {square:.3g}, and none has more than "
            f"{longest:.3g}"
        )
