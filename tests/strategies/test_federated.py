"""FedAvg without a federation: hand-made nodes and replies."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from engine.client_memory import Setup
from engine.transport import MEMORY, WIRE, pack, unpack
from fedta_app.errors import RunError
from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.directory import PROCESS_DIED
from strategies import Exchange, FedAvg, Nodes

# Node ids are far from partition ids, and in another order, as Flower's are.
NODES = Nodes({partition: 1000 - 7 * partition for partition in range(10)})


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    yield


def strategy(fraction: float = 0.3, seed: int = 0) -> FedAvg:
    exchange = Exchange(NODES, {"num-clients": 10}, BlobStore(Path("unused")), WIRE)
    return FedAvg(
        exchange, fraction_train=fraction, seed=seed, learning_rate=lambda r: 0.1 * r,
        steps_of=lambda examples: 4,
    )  # fmt: skip


def messages(fedavg: FedAvg, server_round: int = 2) -> list[Message]:
    arrays = pack(torch.zeros(2), MEMORY)
    sent = list(fedavg.configure_train(server_round, arrays, ConfigRecord(), None))  # type: ignore[arg-type]
    for number, message in enumerate(sent):
        message.metadata.__dict__["_message_id"] = str(number)
    return sent


def answer(message: Message, update: list[float], examples: int, loss: float = 1.0) -> Message:
    figures = {"num-examples": examples, "num-steps": 4, "train-loss": loss, "start-loss": 0.0}
    metrics = MetricRecord(figures)
    content = RecordDict({"arrays": pack(torch.tensor(update), WIRE), "metrics": metrics})
    return Message(content, reply_to=message)


def test_messages_carry_round_and_learning_rate() -> None:
    sent = messages(strategy())
    assert len(sent) == 3
    for message in sent:
        settings = message.content.config_records["config"]
        assert settings["server-round"] == 2
        assert settings["lr"] == 0.2


@given(st.integers(0, 5), st.integers(1, 1000))
def test_sampling_depends_on_seed_and_round_only(seed: int, server_round: int) -> None:
    sample = NODES.sample(0.3, seed, "train", server_round)
    assert sample == NODES.sample(0.3, seed, "train", server_round)
    assert sample == sorted(set(sample))
    assert len(sample) == 3
    assert set(sample) <= set(range(10))


def test_rounds_sample_different_clients_and_at_least_one() -> None:
    assert len({tuple(NODES.sample(0.3, 0, "train", r)) for r in range(20)}) > 10
    assert len(NODES.sample(0.001, 0, "train", 1)) == 1
    assert NODES.sample(1.0, 0, "train", 1) == list(range(10))


def test_the_mean_is_weighted_by_examples() -> None:
    fedavg = strategy()
    first, second, third = messages(fedavg)
    replies = [
        answer(first, [1.0, 0.0], 1, loss=1.0),
        answer(second, [0.0, 4.0], 2, loss=2.0),
        answer(third, [-1.0, 1.0], 1, loss=4.0),
    ]
    arrays, metrics = fedavg.aggregate_train(2, replies)
    # ((1, 0) * 1 + (0, 4) * 2 + (-1, 1) * 1) / 4
    assert torch.allclose(unpack(arrays, MEMORY), torch.tensor([0.0, 2.25]))
    assert metrics["train-loss"] == (1 + 2 * 2 + 4) / 4
    assert (fedavg.exchange.costs.bytes_down, fedavg.exchange.costs.bytes_up) == (3 * 8, 3 * 8)


def test_the_order_of_arrival_changes_no_bit() -> None:
    results = []
    values = [[0.1, 1e-8], [1e8, 0.3], [-1e8, 0.7]]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        fedavg = strategy()
        sent = messages(fedavg)
        replies = [answer(sent[i], values[i], i + 1) for i in order]
        results.append(unpack(fedavg.aggregate_train(2, replies)[0], MEMORY))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_errors_and_silence_are_counted_and_left_out() -> None:
    fedavg = strategy()
    first, second, _ = messages(fedavg)
    failed = Message(Error(code=0, reason="it broke"), reply_to=first)
    arrays, _ = fedavg.aggregate_train(2, [answer(second, [2.0, 2.0], 5), failed])
    assert unpack(arrays, MEMORY).tolist() == [2.0, 2.0]
    assert fedavg.exchange.costs.clients_ok == 1
    assert len(fedavg.exchange.costs.errors) == 2


def test_what_flower_answers_for_a_client_that_is_gone_is_that_clients_error() -> None:
    fedavg = strategy()
    first, second, third = messages(fedavg)
    gone = Message(Error(code=3, reason="Node Unavailable"), reply_to=second)
    gone.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's own
    fedavg.aggregate_train(2, [answer(first, [1.0, 1.0], 1), gone, answer(third, [3.0, 1.0], 1)])
    assert fedavg.exchange.costs.clients_ok == 2
    assert fedavg.exchange.costs.errors == ["Node Unavailable"]


def test_a_dead_process_of_a_simulation_ends_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower would give the next clients to it, so that most of a round fails."""
    monkeypatch.setitem(sys.modules, "ray", sys)
    fedavg = strategy()
    first, second, third = messages(fedavg)
    reason = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died'>"
    died = Message(Error(code=0, reason=reason), reply_to=second)
    with pytest.raises(RunError, match=rf"{PROCESS_DIED} \(client {fedavg._sampled[1]}"):
        fedavg.aggregate_train(
            2, [answer(first, [1.0, 1.0], 1), died, answer(third, [3.0, 1.0], 1)]
        )


def test_nobody_is_an_error() -> None:
    fedavg = strategy()
    messages(fedavg)
    with pytest.raises(RunError, match=r"no client finished round 2: client .* did not answer"):
        fedavg.aggregate_train(2, [])


def test_a_client_that_failed_is_told_its_blobs_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    setup = Setup(head=store.put(b"head"))
    exchange = Exchange(NODES, {"num-clients": 10}, store, WIRE)

    def sent() -> Message:
        (message,) = exchange.messages([4], "train", setup=lambda _: setup)
        return message

    assert "blobs" in sent().content
    exchange.remember(4, setup)
    message = sent()
    assert "blobs" not in message.content
    message.metadata.__dict__["_message_id"] = "0"
    lost = Message(Error(code=0, reason="blobs/x cannot be read"), reply_to=message)
    assert list(exchange.in_order([4], [lost], lambda *_: None)) == []
    assert "blobs" in sent().content


def test_a_reply_that_names_a_file_of_the_server_is_that_clients_error(tmp_path: Path) -> None:
    """Its vector claims to lie in shared memory, where bytes were agreed on."""
    path = tmp_path / "secret"
    path.write_bytes(bytes(4096))
    fedavg = strategy()
    first, second, third = messages(fedavg)
    bad = answer(second, [0.0, 0.0], 1)
    claim = json.dumps({"pid": os.getpid(), "fd": f"../../..{path}", "token": "00" * 16})
    bad.content.array_records["arrays"]["vector"] = Array(
        dtype="float32", shape=(2,), stype="fedta.shared", data=claim.encode()
    )
    replies = [answer(first, [1.0, 1.0], 1), bad, answer(third, [3.0, 1.0], 1)]
    arrays, _ = fedavg.aggregate_train(2, replies)
    assert unpack(arrays, MEMORY).tolist() == [2.0, 1.0]
    (error,) = fedavg.exchange.costs.errors
    assert "came by 'fedta.shared', where 'fedta.wire' was agreed on" in error
    assert path.read_bytes() == bytes(4096)
