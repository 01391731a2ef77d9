"""What Ctrl-C does, once and again, and processes that end with the one that started them."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to end this process, and with it what it started, when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def on_interrupt(first: Callable[[], None], again: Callable[[], None]) -> Iterator[None]:
    """Within the block, call `first` at the first SIGINT and `again` at every further one.

    Python lets only the main thread handle signals: in another one (of a notebook's kernel, say)
    the block runs as it is.
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
