"""Handling of Ctrl-C, and processes that end with their parent."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within the block, ignore Ctrl-C; processes that are started in it ignore it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def on_interrupt(first: Callable[[], None], again: Callable[[], None]) -> Iterator[None]:
    """Within the block, call `first` at the first SIGINT and `again` at every further one.

    Python allows signal handlers in the main thread only: in other threads, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def interrupt(signum: int, frame: object) -> None:
        nonlocal asked
        call, asked = (again if asked else first), True
        call()

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
