"""Bad replies in every phase of a run: left out as if that client had failed, and explained."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message

from engine.inprocess import InProcessGrid
from engine.transport import MEMORY, pack_many
from fedta_app.errors import RunError
from tests.server_app.masked import rows, run

QUICK = {"num-clients": 10, "fraction-train": 0.5, "calibration-rounds": 1, "eval-every": 2}
Vector = Callable[[torch.Tensor], torch.Tensor]


def answer_badly(
    monkeypatch: pytest.MonkeyPatch, message_type: str, change: Vector | None, times: int = 1
) -> None:
    """Let the second client that is asked for something send another vector; None: an error."""
    answer = InProcessGrid.send_and_receive
    left = {message_type: times}

    def some_bad(self: InProcessGrid, messages: Any, **_: Any) -> Iterator[Message]:
        for number, reply in enumerate(answer(self, messages)):
            kind = reply.metadata.message_type
            if number != 1 or not left.get(kind):
                yield reply
                continue
            left[kind] -= 1
            yield _changed(reply, change)

    monkeypatch.setattr(InProcessGrid, "send_and_receive", some_bad)


def _changed(reply: Message, change: Vector | None) -> Message:
    if change is None:
        question, asked = reply, reply.metadata.reply_to_message_id
        question.metadata.__dict__["_dst_node_id"] = reply.metadata.src_node_id
        error = Message(Error(code=0, reason="it broke"), reply_to=question)
        error.metadata.__dict__["_reply_to_message_id"] = asked
        return error
    vectors = {name: array.data for name, array in reply.content["arrays"].items()}  # type: ignore[union-attr]
    assert all(isinstance(vector, torch.Tensor) for vector in vectors.values())
    vectors["vector"] = change(vectors["vector"].clone())
    reply.content["arrays"] = pack_many(vectors, MEMORY)
    return reply


def with_nan(vector: torch.Tensor) -> torch.Tensor:
    vector[len(vector) // 2] = torch.nan
    return vector


def negative(vector: torch.Tensor) -> torch.Tensor:
    vector[0] = -1e30
    return vector


TOLERANT: dict[str, tuple[str, dict[str, Any], Vector]] = {
    "an update of NaN": ("train", {}, with_nan),
    "an update that is too long": ("train", {}, lambda v: torch.cat([v, v])),
    "of a client's own mask": ("train", {"mask-scope": "client"}, lambda v: v[1:]),
    "a probe's update": ("train.probe", {"head": "probe", "probe-rounds": 4}, with_nan),
    "infinite scores": ("train.calibrate", {"calibration-fraction": 0.5}, lambda v: v / 0),
    "negative scores": ("train.calibrate", {"calibration-fraction": 0.5}, negative),
    "a mask of all ones": ("train.mask", {"mask-scope": "vote"}, lambda v: v | 255),
}


@pytest.mark.parametrize("case", TOLERANT)
def test_the_round_goes_on_as_if_that_client_had_failed(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, values, change = TOLERANT[case]
    with monkeypatch.context() as patch:
        answer_badly(patch, kind, change)
        found = run(tmp_path / "bad", **QUICK, **values)
    with monkeypatch.context() as patch:
        answer_badly(patch, kind, None)
        expected = run(tmp_path / "failed", **QUICK, **values)
    assert found["final-weights-sha256"] == expected["final-weights-sha256"]
    (noted,) = found["rejected"]
    assert noted["sent"] and noted["round"] == 1
    assert "rejected" not in expected
    phase = noted["phase"]
    assert sum(int(row["clients_rejected"]) for row in rows(tmp_path / "bad", phase)) == 1
    assert sum(int(row["clients_failed"]) for row in rows(tmp_path / "bad", phase)) == 1
    assert sum(int(row["clients_rejected"]) for row in rows(tmp_path / "failed", phase)) == 0


EVERYBODY: dict[str, tuple[str, dict[str, Any], Vector, str]] = {
    "ridge sums of NaN": ("train.head", {}, with_nan, "the head needs the sums of every client"),
    "ridge sums of another sign": (
        "train.head", {}, lambda v: -v, "client 1 sent class counts that are not whole numbers",
    ),
    "poisoned ridge sums": (
        "train.head", {}, lambda v: torch.cat([v[:1], 100 * v[1:-10], v[-10:]]),
        "client 1 sent a Gram matrix that no features have",
    ),
    "scores": ("train.calibrate", {}, negative, "client 1 sent a sensitivity of -1e\\+30"),
    "an own mask": (
        "train.mask", {"mask-scope": "client"}, lambda v: v | 255, "client 1 sent a mask that",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EVERYBODY)
def test_where_everybody_is_needed_the_error_names_the_client(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, values, change, said = EVERYBODY[case]
    answer_badly(monkeypatch, kind, change)
    with pytest.raises(RunError, match=said):
        run(tmp_path, **QUICK, **values)


def test_a_round_with_too_few_is_repeated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**QUICK, "min-clients-ok": 5}
    answer_badly(monkeypatch, "train", with_nan)
    run(tmp_path, **values)
    assert "4 of at least 5 clients finished round 1" in capsys.readouterr().out
    first, second = rows(tmp_path, "train")
    assert (first["clients_ok"], first["clients_rejected"]) == ("9", "1")
    assert (second["clients_ok"], second["clients_rejected"]) == ("5", "0")
    assert int(first["bytes_down"]) > 1.5 * int(second["bytes_down"])


def test_and_then_the_run_stops_with_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**QUICK, "min-clients-ok": 5}
    with monkeypatch.context() as patch:
        answer_badly(patch, "train", with_nan, times=2)
        with pytest.raises(RunError, match="4 of at least 5 clients finished round 1: client"):
            run(tmp_path, **values)
    again = run(tmp_path, **values)
    unbroken = run(tmp_path / "unbroken", **values)
    assert again["final-weights-sha256"] == unbroken["final-weights-sha256"]
