"""Clients that fail while they train."""

from collections.abc import Callable
from typing import Any

import pytest

from fedta_app.training import client as local


def fail_for(monkeypatch: pytest.MonkeyPatch, which: Callable[[tuple[int, ...]], bool]) -> None:
    """Let training raise an error where `which` says so, of server round and partition id."""
    train = local.train_steps

    def sometimes(*args: Any, key: tuple[int, ...], **values: Any) -> float:
        if which(key):
            raise ArithmeticError("it broke, for example")
        return train(*args, key=key, **values)

    monkeypatch.setattr(local, "train_steps", sometimes)
