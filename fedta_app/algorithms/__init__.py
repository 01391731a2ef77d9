"""Federated algorithms, one file each, with both halves: what clients do and what the server does.

A file in this folder that defines a subclass of `Algorithm` with a `name` is found by itself, and
`strategy = "<name>"` runs it.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fedta_app.algorithms.base import (
    PERSONAL,
    REGISTRY,
    Accumulator,
    Algorithm,
    Correction,
    LocalRule,
    MeanOfReplies,
    Move,
    PersonalModel,
    Reply,
    Total,
    Vectors,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "PERSONAL",
    "Accumulator",
    "Algorithm",
    "Correction",
    "LocalRule",
    "MeanOfReplies",
    "Move",
    "PersonalModel",
    "Reply",
    "Total",
    "Vectors",
    "algorithms",
    "make_algorithm",
    "reads",
]


def algorithms() -> tuple[str, ...]:
    """Return the names of all algorithms, FedAvg first."""
    return tuple(sorted(REGISTRY, key=lambda name: (name != "fedavg", name)))


def reads(name: str) -> frozenset[str]:
    """Return the names of an algorithm's fields: the configuration keys that it reads."""
    return (
        frozenset(entry.name for entry in fields(REGISTRY[name]))
        if name in REGISTRY
        else frozenset()
    )


def make_algorithm(name: str, options: Mapping[str, Any]) -> Algorithm:
    """Return the algorithm of a name, its fields filled in from options of the same names.

    A field without an option keeps its default.

    Raises
    ------
    KeyError
        When there is no such algorithm.
    """
    wanted = REGISTRY[name]
    return wanted(**{key: options[key] for key in reads(name) if key in options})
