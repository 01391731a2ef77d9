"""Typed reading of Flower's records, whose values may be of many types."""

from collections.abc import Mapping
from typing import Any


def whole(record: Mapping[str, Any], key: str) -> int:
    """Return a whole number of a record; raise TypeError when it is something else."""
    value = record[key]
    if not isinstance(value, int):
        raise TypeError(f"{key} of a message is {value!r}, not a whole number")
    return value


def number(record: Mapping[str, Any], key: str) -> float:
    """Return a number of a record; raise TypeError when it is something else."""
    value = record[key]
    if not isinstance(value, int | float):
        raise TypeError(f"{key} of a message is {value!r}, not a number")
    return float(value)
