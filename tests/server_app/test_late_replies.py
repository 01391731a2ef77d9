"""Replies that come after `round-timeout`: counted as failed, and never used."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from client_app.app import app as client_app
from engine.inprocess import InProcessGrid
from engine.transport import WIRE, pack_many, unpack
from experiments.running.cells import read_summary
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from server_app.app import app as server_app
from tests.server_app.masked import MASKED, rows, run
from tests.server_app.test_rejected_replies import answer_badly

VALUES = {
    **MASKED, "num-clients": 10, "fraction-train": 0.5, "calibration-rounds": 1, "eval-every": 2,
    "transport": "wire", "round-timeout": 0.05,
}  # fmt: skip


class LateGrid(Grid):
    """Keeps back the second reply to the first messages of a type, until others are sent.

    Then it hands out that reply, unasked, with another vector in it.
    """

    def __init__(self, kind: str, run_config: dict[str, Any]) -> None:
        self._inner = InProcessGrid(client_app, 10, run_config)
        self._kind = kind
        self._late: list[str] = []
        self.poisoned: list[Message] = []

    def set_run(self, run: Any) -> None:
        self._inner.set_run(run)

    @property
    def run(self) -> Any:
        return self._inner.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        identifiers = list(self._inner.push_messages(sent))
        if self._late and not self.poisoned:
            self.poisoned = [poisoned(m) for m in self._inner.pull_messages(self._late)]
        if sent[0].metadata.message_type == self._kind and not self._late:
            self._late = identifiers[1:2]
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        on_time = [key for key in message_ids if key not in self._late]
        return [*self.poisoned, *self._inner.pull_messages(on_time)]


def poisoned(reply: Message) -> Message:
    vector = unpack(reply.content.array_records["arrays"], WIRE)
    reply.content["arrays"] = pack_many({"vector": torch.full_like(vector, 1e6)}, WIRE)
    return reply


def run_late(folder: Path, kind: str, **values: Any) -> LateGrid:
    config = {**VALUES, "results-dir": str(folder), **values}
    grid = LateGrid(kind, config)
    context = Context(1, 1, {}, RecordDict(), config)
    server_app(grid=grid, context=context)
    return grid


@pytest.mark.parametrize(
    ("kind", "phase", "values"),
    [
        ("train", "train", {}),
        ("train.calibrate", "calibrate", {"calibration-fraction": 0.9}),
    ],
)
def test_the_run_ends_as_if_that_client_had_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, phase: str, values: dict[str, Any]
) -> None:
    grid = run_late(tmp_path / "late", kind, **values)
    assert grid.poisoned, "the late reply did come"
    answer_badly(monkeypatch, kind, None)
    expected = run(tmp_path / "failed", **VALUES, **values)
    found = read_summary(tmp_path / "late/test/seed0")
    assert found["final-weights-sha256"] == expected["final-weights-sha256"]
    for name in ("late", "failed"):
        assert sum(int(row["clients_failed"]) for row in rows(tmp_path / name, phase)) == 1
        assert all(row["clients_rejected"] == "0" for row in rows(tmp_path / name, phase))


def test_where_everybody_is_needed_the_run_stops(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="client 1 did not answer in time"):
        run_late(tmp_path, "train.head")


@pytest.mark.parametrize("value", [0, -1.0, "an hour"])
def test_no_time_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="round-timeout is a number of seconds above 0"):
        RunConfig.from_mapping({"round-timeout": value})
