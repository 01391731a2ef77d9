"""Random generators that are made from a key.

Every generator of a run has a key (seed, purpose, server_round, client, ...) of its own. So the
random numbers are the same on every engine, with any scheduling, and after a resume.
"""

import hashlib
import operator
from typing import SupportsIndex

import numpy as np
import torch


def checked_seed(seed: SupportsIndex) -> int:
    """Return a seed, which may be an integer of NumPy, as Python's integer.

    Raises
    ------
    ValueError
        If it is no integer, or a truth value.
    """
    try:
        if isinstance(seed, bool | np.bool_):  # Python's and, before NumPy 2, NumPy's are integers
            raise TypeError
        return operator.index(seed)
    except TypeError:
        raise ValueError(f"seed is {seed!r}; it must be an integer.") from None


def derive_seed(*key: SupportsIndex | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part of the key and on their order.

    Integers of any type, NumPy's too, count as their value.

    Raises
    ------
    ValueError
        If a part is neither an integer nor text.
    """
    parts = (f"str:{p}" if isinstance(p, str) else f"int:{checked_seed(p)}" for p in key)
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(*key: SupportsIndex | str) -> torch.Generator:
    """Return a generator for the key, on the CPU so that all devices get the same numbers."""
    return torch.Generator().manual_seed(derive_seed(*key))


def numpy_generator(*key: SupportsIndex | str) -> np.random.Generator:
    """Return a NumPy generator for the key."""
    return np.random.default_rng(derive_seed(*key))
