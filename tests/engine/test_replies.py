"""Replies one by one from grids that only push and pull, as Flower's do."""

import pytest
from flwr.app import Message, RecordDict

from engine.inprocess import InProcessGrid
from engine.replies import replies_as_they_come


class Clock:
    """Time that passes where somebody sleeps, and never on a machine that is busy."""

    now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("engine.replies.time", clock)
    return clock


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


def test_silent_clients_are_given_up(clock):
    found = list(replies_as_they_come(SlowGrid(silent={"1"}), ["a", "b", "c"], timeout=0.3))
    assert len(found) == 2
    assert clock.now == pytest.approx(0.3)


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


class ReadyGrid:
    """Has every answer at once, and gives one for each look."""

    def push_messages(self, messages):
        self.ids = [str(number) for number, _ in enumerate(messages)]
        return self.ids

    def pull_messages(self, message_ids):
        return [Reply(self.ids.pop(0))]


def test_replies_that_came_while_the_server_was_busy_are_not_late(clock):
    replies = replies_as_they_come(ReadyGrid(), ["a", "b"], timeout=0.1)
    next(replies)
    clock.sleep(0.2)  # adds up the first one
    assert [reply.metadata.reply_to_message_id for reply in replies] == ["1"]


def test_the_wait_ends_on_time_even_between_two_looks(clock):
    """After 200 seconds without a reply the looks are a second apart."""
    assert not list(replies_as_they_come(SlowGrid(silent={"0"}), ["a"], timeout=200.5))
    assert clock.now == pytest.approx(200.5)
