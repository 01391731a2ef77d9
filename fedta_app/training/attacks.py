"""Hostile clients, to evaluate defences against them: what they send in place of the truth.

A share of all clients, drawn once by the seed, is hostile in every round. Their replies look like
good ones: names, shapes and finite numbers are right, so that only the values can give them away.
Each attack is on one phase, and in the others its clients are honest.
"""

from torch import Tensor

from fedta_app.config import RunConfig
from fedta_app.heads import RidgeStatistics
from fedta_app.seeding import numpy_generator


def attackers(seed: int, num_clients: int, share: float) -> frozenset[int]:
    """Return the partition ids of the hostile clients, `round(share * num_clients)` of them.

    Examples
    --------
    >>> len(attackers(seed=0, num_clients=100, share=0.1))
    10
    """
    number = round(share * num_clients)
    generator = numpy_generator(seed, "attackers")
    return frozenset(generator.choice(num_clients, size=number, replace=False).tolist())


def attack_(update: Tensor, attack: str, step_length: float) -> Tensor:
    """Turn an update (P,) into what a hostile client sends, in place, and return it.

    Parameters
    ----------
    attack : str
        sign-flip: the update in the other direction. scale: 10 times as long. reverse: -100 times.
        same-value: `step_length` in every entry, the same from all hostile clients (Li et al.,
        "RSA: Byzantine-Robust Stochastic Aggregation Methods", AAAI 2019, section 5).
    step_length : float
        Learning rate times local steps: what a gradient of -1 in every entry would give.

    Examples
    --------
    >>> import torch
    >>> attack_(torch.tensor([1.0, -2.0]), "sign-flip", step_length=0.1).tolist()
    [-1.0, 2.0]
    """
    if attack == "same-value":
        return update.fill_(step_length)
    return update.mul_({"sign-flip": -1.0, "scale": 10.0, "reverse": -100.0}[attack])


def poisoned_sums(sums: RidgeStatistics, attack: str) -> RidgeStatistics:
    """Return what a hostile client sends for the ridge head.

    Parameters
    ----------
    attack : str
        head-labels: every image is said to be of the next class. head-scale: features are 100 times
        as long as they are.

    Examples
    --------
    >>> import torch
    >>> sums = RidgeStatistics(1, 3).add(torch.tensor([[2.0]]), torch.tensor([2]))
    >>> poisoned_sums(sums, "head-labels").class_counts.tolist()
    [1.0, 0.0, 0.0]
    >>> poisoned_sums(sums, "head-scale").gram.tolist()
    [[40000.0]]
    """
    shift, length = (1, 1.0) if attack == "head-labels" else (0, 100.0)
    sums.gram *= length**2
    sums.class_sums = length * sums.class_sums.roll(shift, 0)
    sums.class_counts = sums.class_counts.roll(shift)
    return sums


def poisoned_scores(scores: Tensor) -> Tensor:
    """Return scores (N,) that rank the other way, a thousand times as large as the true ones.

    Examples
    --------
    >>> import torch
    >>> poisoned_scores(torch.tensor([1.0, 3.0])).tolist()
    [2000.0, 0.0]
    """
    return 1000 * (scores.max() - scores)


def attack_of(config: RunConfig, partition_id: int) -> str:
    """Return the attack of a client of a run; nothing, if it is honest."""
    if not config.attackers:
        return ""
    hostile = attackers(config.seed, config.num_clients, config.attackers)
    return config.attack if partition_id in hostile else ""
