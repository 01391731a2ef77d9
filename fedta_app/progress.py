"""A line now and then during long work, so that no command is silent for a minute.

Who knows what a command is doing opens a phase; the work below counts what it has done. Work that
takes longer than ten seconds is then reported, every ten seconds, by a thread that only prints:

    head round 3: 37 of 100 clients, 0:00:40 left

Work that is counted outside of any phase, as on a client in a process of its own, is not reported.
"""

import datetime
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TextIO

_EVERY = 10.0  # seconds of silence before the first line, and between two


@dataclass(eq=False)
class Count:
    """How much of a piece of work is done; `add` says so."""

    unit: str
    total: int
    began: float
    done: int = 0

    def add(self, number: int = 1) -> None:
        """Count some more of the work as done."""
        self.done += number


@dataclass
class _Phase:
    label: str
    stream: TextIO
    began: float
    spoke: float
    counts: list[Count] = field(default_factory=list)  # the outermost first

    def line(self, now: float) -> str:
        clock = _clock(now - self.began)
        if not self.counts:
            return f"{self.label}: {clock} so far"
        count = self.counts[0]
        done = min(count.done, count.total)
        words = f"{self.label}: {done} of {count.total} {count.unit}"
        if not done:
            return f"{words}, {clock} so far"
        left = (now - count.began) * (count.total - done) / done
        return f"{words}, {_clock(left)} left"


class Reporter:
    """Reports one phase at a time; phases within it are part of it.

    Parameters
    ----------
    clock : callable
        Returns seconds.
    watched : bool
        Start a thread that looks every second; without it, somebody else calls `look`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, watched: bool) -> None:
        self._clock = clock
        self._phase: _Phase | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._watched = watched

    @contextmanager
    def phase(self, label: str, stream: TextIO | None = None) -> Iterator[None]:
        """Report the work of the block on the stream (sys.stdout) while it takes long."""
        if self._phase is not None:
            yield
            return
        now = self._clock()
        phase = _Phase(label, stream or sys.stdout, now, now)
        self._watch()
        with self._lock:
            self._phase = phase
        try:
            yield
        finally:
            with self._lock:
                self._phase = None

    @contextmanager
    def counting(self, unit: str, total: int) -> Iterator[Count]:
        """Yield the count of the block's work; of several around each other, the outer one shows.

        Parameters
        ----------
        unit : str
            What is counted, such as "images".
        total : int
            How many of them there are.
        """
        count = Count(unit, total, self._clock())
        counts = self._phase.counts if self._phase is not None else []
        counts.append(count)
        try:
            yield count
        finally:
            counts.remove(count)

    def look(self) -> None:
        """Print a line if the phase has been silent for long enough."""
        with self._lock:  # so that a line never comes after the end of its phase
            phase, now = self._phase, self._clock()
            if phase is not None and now - phase.spoke >= _EVERY:
                phase.spoke = now
                with suppress(OSError, ValueError):  # nobody reads any more
                    print(phase.line(now), file=phase.stream, flush=True)

    def _watch(self) -> None:
        if self._watched and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._look_again_and_again, daemon=True)
            self._thread.start()

    def _look_again_and_again(self) -> None:
        while True:
            time.sleep(1.0)
            self.look()


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


_reporter = Reporter(watched=True)
phase = _reporter.phase
counting = _reporter.counting
