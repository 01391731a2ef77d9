"""Replies as they come, from any engine."""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from engine.inprocess import InProcessGrid

_SHORTEST, _LONGEST = 0.005, 1.0  # seconds between two looks


def replies_as_they_come(
    grid: Grid, messages: Iterable[Message], timeout: float
) -> Iterator[Message]:
    """Send messages and yield each reply when it is there, so that work overlaps with waiting.

    Flower's own `send_and_receive` returns when the last reply is there. Between two looks this
    sleeps for a fiftieth of the time since the last reply: a reply waits for at most 2% of what
    it took, whether that was a millisecond or an hour.

    Parameters
    ----------
    timeout : float
        Seconds after which clients that have not answered are given up.
    """
    if isinstance(grid, InProcessGrid):
        yield from grid.send_and_receive(messages)
        return
    waiting = set(grid.push_messages(messages))
    del messages  # Flower has them now
    end = time.monotonic() + timeout
    last = began = time.monotonic()
    while waiting and began < end:
        found = list(grid.pull_messages(waiting))
        waiting.difference_update(reply.metadata.reply_to_message_id for reply in found)
        looked = time.monotonic() - began  # a look at many messages takes its time too
        yield from found
        if found:
            last = time.monotonic()
        if waiting:
            pause = max(_SHORTEST, looked, (time.monotonic() - last) / 50)
            time.sleep(min(_LONGEST, pause))
        began = time.monotonic()
