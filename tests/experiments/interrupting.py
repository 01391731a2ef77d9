"""Ctrl-C at a moment of a run in this process."""

import signal
from collections.abc import Callable

import pytest

from fedta_app.runs.metrics import Row
from fedta_app.runs.session import RunSession


def ctrl_c_after(
    monkeypatch: pytest.MonkeyPatch, due: Callable[[Row], bool], *, times: int = 1
) -> None:
    """Let SIGINT come after every row that is due, until `monkeypatch` is undone."""
    add = RunSession.add

    def add_and_interrupt(session: RunSession, *arguments: object) -> None:
        add(session, *arguments)  # type: ignore[arg-type]
        if due(session.rows[-1]):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunSession, "add", add_and_interrupt)
