"""Hostile clients, to evaluate defences against them: what they send in place of their updates.

A share of all clients, drawn once by the seed, is hostile in every round. Their replies look like
good ones: names, shapes and finite numbers are right, so that only the values can give them away.
"""

from torch import Tensor

from fedta_app.config import RunConfig
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


def is_attacker(config: RunConfig, partition_id: int) -> bool:
    """Return whether a client of a run is hostile."""
    if not config.attackers:
        return False
    return partition_id in attackers(config.seed, config.num_clients, config.attackers)
