"""Random generators that are made from a key.

Every generator of a run has a key (seed, purpose, server_round, client, ...) of its own. So the
random numbers are the same on every engine, with any scheduling, and after a resume.
"""

import hashlib

import numpy as np
import torch


def derive_seed(*key: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part of the key and on their order."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(*key: int | str) -> torch.Generator:
    """Return a generator for the key, on the CPU so that all devices get the same numbers."""
    return torch.Generator().manual_seed(derive_seed(*key))


def numpy_generator(*key: int | str) -> np.random.Generator:
    """Return a NumPy generator for the key."""
    return np.random.default_rng(derive_seed(*key))
