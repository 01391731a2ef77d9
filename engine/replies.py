"""Sending messages and receiving the replies one by one, on any engine."""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from engine.inprocess import InProcessGrid

_SHORTEST, _LONGEST = 0.005, 1.0  # seconds between two polls


def replies_as_they_come(
    grid: Grid, messages: Iterable[Message], timeout: float
) -> Iterator[Message]:
    """Send messages and yield each reply on arrival, so that aggregation overlaps with waiting.

    Flower's own `send_and_receive` returns only after the last reply. Between two polls, this
    function sleeps for 2% of the time since the last reply: that bounds both the delay and the
    number of polls, whether a reply takes a millisecond or an hour.

    Parameters
    ----------
    timeout : float
        Seconds after which missing replies are no longer waited for: there is one last look for
        them then, and what comes later is never fetched. The in-process engine, whose clients take
        turns with the server, has no clock and waits for all of them.
    """
    if isinstance(grid, InProcessGrid):
        yield from grid.send_and_receive(messages)
        return
    waiting = set(grid.push_messages(messages))
    del messages  # Flower holds them now
    last = time.monotonic()
    end = last + timeout
    while waiting:
        began = time.monotonic()
        found = list(grid.pull_messages(waiting))
        waiting.difference_update(reply.metadata.reply_to_message_id for reply in found)
        polled = time.monotonic() - began  # polling for many messages takes time too
        yield from found
        if began >= end:
            return
        now = time.monotonic()
        last = now if found else last
        if waiting:
            pause = max(_SHORTEST, polled, (now - last) / 50)
            time.sleep(min(_LONGEST, pause, max(0.0, end - now)))
