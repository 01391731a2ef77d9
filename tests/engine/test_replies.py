"""Replies one by one from grids that only push and pull, as Flower's do."""

import time

import pytest
from flwr.app import Message, RecordDict

from engine.inprocess import InProcessGrid
from engine.replies import replies_as_they_come


class Metadata:
    def __init__(self, identifier):
        self.reply_to_message_id = identifier


class Reply:
    def __init__(self, identifier):
        self.metadata = Metadata(identifier)


class SlowGrid:
    """Answers message k when it was looked at k times."""

    def __init__(self, silent=()):
        self.looks = 0
        self.silent = set(silent)
        self.given = set()

    def push_messages(self, messages):
        self.ids = [str(number) for number, _ in enumerate(messages)]
        return self.ids

    def pull_messages(self, message_ids):
        assert not self.given & set(message_ids)  # nobody asks twice
        ready = [key for key in self.ids[: self.looks] if key not in self.given | self.silent]
        self.looks += 1
        self.given |= set(ready)
        return [Reply(key) for key in ready]


def test_a_reply_comes_before_the_next_is_there():
    grid = SlowGrid()
    replies = replies_as_they_come(grid, ["a", "b", "c"], timeout=10)
    assert next(replies).metadata.reply_to_message_id == "0"
    assert grid.looks == 2
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["1", "2"]


def test_silent_clients_are_given_up():
    began = time.monotonic()
    found = list(replies_as_they_come(SlowGrid(silent={"1"}), ["a", "b", "c"], timeout=0.3))
    assert len(found) == 2
    assert 0.2 < time.monotonic() - began < 5


@pytest.mark.parametrize("count", [0, 3])
def test_in_process_a_client_runs_when_its_reply_is_asked_for(count):
    asked = []

    def client(message, context):
        asked.append(message.metadata.dst_node_id)
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(client, 5, {})
    nodes = list(grid.get_node_ids())[:count]
    messages = [Message(RecordDict(), node, "query") for node in nodes]
    for number, _ in enumerate(replies_as_they_come(grid, messages, timeout=1)):
        assert asked == nodes[: number + 1]
    assert asked == nodes
