"""Replies that are broken or hostile: left out, counted and explained, whatever is in them."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from engine.transport import MEMORY, WIRE, pack, pack_many, unpack
from fedta_app.errors import RunError
from fedta_app.heads.ridge import RidgeStatistics
from fedta_app.runs.blobs import BlobStore
from fedta_app.vectors import FlatMask
from strategies import Exchange, FedAvg, Nodes
from strategies.exchange import RoundCosts
from strategies.reply_checks import (
    ReplyError,
    TooFewClientsError,
    _whole,
    check_counts,
    check_mask,
    check_scores,
    check_statistics,
    check_vectors,
)

SIZE = 3
NODES = Nodes({partition: 1000 - 7 * partition for partition in range(10)})


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    yield


def strategy(**options: Any) -> FedAvg:
    exchange = Exchange(NODES, {"num-clients": 10}, BlobStore(Path("unused")), WIRE)
    options = {
        "fraction_train": 0.3,
        "most_examples": lambda client: 50,
        "steps_of": lambda examples: 4,
        **options,
    }
    return FedAvg(exchange, seed=0, learning_rate=lambda r: 0.1, **options)


def ask(fedavg: FedAvg, server_round: int = 1) -> list[Message]:
    arrays = pack(torch.zeros(SIZE), MEMORY)
    sent = list(fedavg.configure_train(server_round, arrays, ConfigRecord(), None))  # type: ignore[arg-type]
    for number, message in enumerate(sent):
        message.metadata.__dict__["_message_id"] = f"{server_round}-{number}"
    return sent


def answer(message: Message, arrays: ArrayRecord | None = None, **metrics: Any) -> Message:
    named = {"num-examples": 5, "num-steps": 4, "train-loss": 1.0, "start-loss": 0.0}
    named |= {name.replace("_", "-"): value for name, value in metrics.items()}
    given = MetricRecord({name: value for name, value in named.items() if value is not None})
    arrays = pack(torch.ones(SIZE), WIRE) if arrays is None else arrays
    return Message(RecordDict({"arrays": arrays, "metrics": given}), reply_to=message)


def wire(values: Any, name: str = "vector", dtype: torch.dtype = torch.float32) -> ArrayRecord:
    return pack_many({name: torch.as_tensor(values, dtype=dtype)}, WIRE)


def altered(**fields: Any) -> ArrayRecord:
    record = wire([1.0] * SIZE)
    for name, value in fields.items():
        record["vector"].__dict__[name] = value
    return record


Reply = Callable[[Message], Message]
BAD: dict[str, tuple[Reply, str]] = {
    "no arrays": (
        lambda m: Message(RecordDict({"metrics": MetricRecord({"train-loss": 1.0})}), reply_to=m),
        "no vector 'vector'",
    ),
    "no records at all": (lambda m: Message(RecordDict(), reply_to=m), "no vector 'vector'"),
    "another name": (lambda m: answer(m, wire([1.0] * SIZE, "weights")), "no vector 'vector'"),
    "one more vector": (
        lambda m: answer(m, pack_many({"vector": torch.ones(SIZE), "x": torch.ones(1)}, WIRE)),
        "an unknown vector 'x'",
    ),
    "too short": (lambda m: answer(m, wire([1.0])), "of shape (1,), not torch.float32 of"),
    "too long": (lambda m: answer(m, wire([1.0] * 9)), "of shape (9,)"),
    "empty": (lambda m: answer(m, wire([])), "of shape (0,)"),
    "a matrix": (lambda m: answer(m, wire([[1.0] * SIZE])), "of shape (1, 3)"),
    "a number": (lambda m: answer(m, wire(1.0)), "of shape ()"),
    "doubles": (lambda m: answer(m, wire([1.0] * SIZE, dtype=torch.float64)), "torch.float64"),
    "integers": (
        lambda m: answer(m, wire([1] * SIZE, dtype=torch.int32)),
        "as torch.int32 of shape",
    ),
    "NaN": (lambda m: answer(m, wire([1.0, math.nan, 1.0])), "not finite"),
    "infinity": (lambda m: answer(m, wire([1.0, -math.inf, 1.0])), "not finite"),
    "another transport": (lambda m: answer(m, pack(torch.ones(SIZE), MEMORY)), "was agreed on"),
    "shared memory": (lambda m: answer(m, altered(stype="fedta.shared")), "was agreed on"),
    "Flower's own arrays": (lambda m: answer(m, altered(stype="numpy.ndarray")), "was agreed on"),
    "an unknown type": (lambda m: answer(m, altered(dtype="object")), "is 'object' of shape"),
    "a type that is no type": (lambda m: answer(m, altered(dtype="load")), "is 'load' of shape"),
    "a type without a size": (lambda m: answer(m, altered(dtype="qint8")), ""),
    "bfloat16": (lambda m: answer(m, altered(dtype="bfloat16", data=bytes(6))), ""),
    "a negative shape": (lambda m: answer(m, altered(shape=(-3,))), "of shape (-3,)"),
    "too many dimensions": (
        lambda m: answer(m, altered(shape=(1,) * 65, data=bytes(4))),
        "has 65 dimensions, or is too large",
    ),
    "nothing of a huge shape": (
        lambda m: answer(m, altered(shape=(0, 2**31 - 1, 2**31 - 1, 2**31 - 1), data=b"")),
        "has 4 dimensions, or is too large",
    ),
    "a larger shape": (lambda m: answer(m, altered(shape=(2**70,))), "or is too large"),
    "a huge loss": (lambda m: answer(m, train_loss=1e308), "no loss is beyond"),
    "a huge loss at the start": (lambda m: answer(m, start_loss=-1e300), "no loss is beyond"),
    "a huge shape": (lambda m: answer(m, altered(shape=(10**12,))), "has 12 bytes for"),
    "too few bytes": (lambda m: answer(m, altered(data=b"123")), "has 3 bytes for"),
    "no metrics": (
        lambda m: Message(RecordDict({"arrays": wire([1.0] * SIZE)}), reply_to=m),
        "num-examples = None, which is no whole",
    ),
    "no loss": (lambda m: answer(m, train_loss=None), "train-loss = None"),
    "a loss of NaN": (lambda m: answer(m, train_loss=math.nan), "train-loss = nan"),
    "an infinite loss": (lambda m: answer(m, train_loss=math.inf), "train-loss = inf"),
    "a start without a number": (lambda m: answer(m, start_loss=math.nan), "start-loss = nan"),
    "no examples": (lambda m: answer(m, num_examples=0), "num-examples = 0, which is no whole"),
    "fewer than none": (lambda m: answer(m, num_examples=-5), "num-examples = -5"),
    "half an example": (lambda m: answer(m, num_examples=2.5), "num-examples = 2.5"),
    "more than there are": (lambda m: answer(m, num_examples=51), "whole number from 1 to 50"),
    "a trillion": (lambda m: answer(m, num_examples=10**18), "num-examples = 1000000000000000000"),
    "several numbers": (lambda m: answer(m, num_examples=[5, 5]), "num-examples = [5, 5]"),
    "a start below any loss": (lambda m: answer(m, start_loss=-1.0), "start-loss = -1"),
    "no steps": (lambda m: answer(m, num_steps=0), "num-steps = 0"),
    "too many steps": (lambda m: answer(m, num_steps=5), "num-steps = 5"),
    "a memory that is no digest": (
        lambda m: _with(answer(m), "memory", ConfigRecord({"digest": "../../etc/passwd"})),
        "a name of its memory that is no sha256",
    ),
    "a memory without a name": (
        lambda m: _with(answer(m), "memory", ConfigRecord({"sha": "0"})),
        "a name of its memory that is no sha256",
    ),
}


def _with(reply: Message, name: str, record: Any) -> Message:
    reply.content[name] = record
    return reply


@pytest.mark.parametrize("case", BAD)
def test_a_bad_reply_counts_as_that_clients_error_and_changes_nothing(case: str) -> None:
    """The weights are those of a round in which that client raised an error."""
    bad, said = BAD[case]
    fedavg, without = strategy(), strategy()
    first, second, third = ask(fedavg)
    arrays, metrics = fedavg.aggregate_train(1, [answer(first), bad(second), answer(third)])
    first, second, third = ask(without)
    error = Message(Error(code=0, reason="it broke"), reply_to=second)
    expected, losses = without.aggregate_train(1, [answer(first), error, answer(third)])
    assert torch.equal(unpack(arrays, MEMORY), unpack(expected, MEMORY))
    assert metrics["train-loss"] == losses["train-loss"]
    costs, client = fedavg.exchange.costs, fedavg._sampled[1]
    assert (costs.clients_ok, len(costs.errors), list(costs.rejected)) == (2, 1, [client])
    assert said in costs.rejected[client]
    assert costs.errors[0].startswith(f"client {client} sent ")
    assert client not in fedavg.answered and not fedavg.memories


@given(st.data())
def test_any_mixture_of_bad_replies_ends_no_round(data: st.DataObject) -> None:
    fedavg = strategy(fraction_train=1.0)
    sent = ask(fedavg)
    chosen = [data.draw(st.sampled_from([None, *BAD])) for _ in sent[1:]]
    replies = [answer(sent[0])]
    for message, case in zip(sent[1:], chosen, strict=True):
        replies.append(answer(message) if case is None else BAD[case][0](message))
    arrays, _ = fedavg.aggregate_train(1, data.draw(st.permutations(replies)))
    assert unpack(arrays, MEMORY).tolist() == [1.0] * SIZE
    assert len(fedavg.exchange.costs.rejected) == sum(case is not None for case in chosen)


@pytest.mark.parametrize("steps", [1, 3])
def test_other_steps_than_the_round_has_are_rejected(steps: int) -> None:
    """SCAFFOLD divides by the steps of a round, which are the same for all clients."""
    fedavg = strategy(local_steps=lambda server_round: 4)
    sent = ask(fedavg)
    fedavg.aggregate_train(1, [answer(sent[0], num_steps=steps), *map(answer, sent[1:])])
    (said,) = fedavg.exchange.costs.rejected.values()
    assert f"num-steps = {steps}, which is no whole number from 4 to 4" in said


@pytest.mark.parametrize(("examples", "steps"), [(50, 13), (3, 1), (4, 1), (5, 2)])
def test_the_steps_of_one_pass_are_those_of_the_examples(examples: int, steps: int) -> None:
    """FedNova divides an update by what is said of them: a false 1 would lengthen it 13 times."""
    for said in {1, steps, steps + 1, 13}:
        fedavg = strategy(steps_of=lambda number: -(-number // 4))
        sent = ask(fedavg)
        right = {"num_examples": examples, "num_steps": steps}
        first = answer(sent[0], num_examples=examples, num_steps=said)
        fedavg.aggregate_train(1, [first, *(answer(m, **right) for m in sent[1:])])
        assert len(fedavg.exchange.costs.rejected) == (said != steps)


@pytest.mark.parametrize("counts", [[2**63 - 1, 2**63 - 1, 7], [-1, 5, 5], [51, 0, 0], [0, 0, 0]])
def test_class_counts_that_no_client_has_are_refused(counts: list[int]) -> None:
    check_counts(torch.tensor([20, 30, 0]), 3, 50)
    with pytest.raises(ReplyError, match="class counts that are not those of 1 to 50 images"):
        check_counts(torch.tensor(counts), 3, 50)


def test_what_a_client_says_is_kept_short_and_printable() -> None:
    costs = RoundCosts()
    long = ["\x1b[31m"] * 10**6
    for value in (long, "\x1b[31m" * 10**6, {"a": long}):
        with pytest.raises(ReplyError) as caught:
            _whole({"num-examples": value}, "num-examples", 50)
        costs.reject(1, caught.value)
    costs.reject(2, ReplyError("\x1b[31m" * 10**6))
    costs.fail(3, "\x1b[31mred\n" * 10**5)
    kept = [*costs.errors, *costs.rejected.values(), *costs.missing.values()]
    assert all(len(text) < 13_000 for text in kept) and "\x1b" not in "".join(kept)
    assert costs.errors[-1].splitlines()[-1] == "?[31mred"


@pytest.mark.parametrize("size", [math.inf, math.nan, -1.0, "7"])
def test_a_peak_of_memory_that_is_none_is_ignored(size: Any) -> None:
    fedavg = strategy()
    sent = ask(fedavg)
    replies = [answer(message) for message in sent]
    for reply, peak in zip(replies, (12.5, size), strict=False):
        record = {"client_memory_mb": peak} if not isinstance(peak, str) else {}
        reply.content["peaks"] = MetricRecord(record)
    fedavg.aggregate_train(1, replies)
    assert fedavg.exchange.costs.peaks == {"client_memory_mb": 12.5}


def test_an_empty_vector_is_refused_where_there_should_be_none() -> None:
    check_vectors({"vector": torch.zeros(0)}, {"vector": 0}, torch.float32)
    with pytest.raises(ReplyError, match="a mask that trains nothing"):
        check_mask(torch.zeros(2, dtype=torch.uint8), 16, None)


def test_replies_that_answer_nothing_are_ignored() -> None:
    fedavg = strategy()
    first, second, third = ask(fedavg)
    stray = copy.deepcopy(answer(first, wire([9.0] * SIZE)))
    stray.metadata.__dict__["_reply_to_message_id"] = "of another run"
    replies = [stray, answer(first), answer(second), answer(third)]
    arrays, _ = fedavg.aggregate_train(1, replies)
    assert unpack(arrays, MEMORY).tolist() == [1.0] * SIZE
    assert fedavg.exchange.costs.clients_ok == 3


class TestTooFew:
    def test_a_round_with_too_few_asks_others_and_changes_nothing_before(self) -> None:
        fedavg = strategy(min_clients_ok=2)
        first, second, third = ask(fedavg)
        asked = set(fedavg._sampled)
        down = fedavg.exchange.costs.bytes_down
        bad = BAD["too short"][0]
        with pytest.raises(TooFewClientsError, match=r"1 of at least 2 clients finished round 1"):
            fedavg.aggregate_train(1, [answer(first), bad(second), bad(third)])
        again = ask(fedavg)
        assert asked.isdisjoint(fedavg._sampled) and len(again) == 3
        assert fedavg.exchange.costs.bytes_down == 2 * down, "both attempts count"
        arrays, _ = fedavg.aggregate_train(1, [answer(message) for message in again])
        assert unpack(arrays, MEMORY).tolist() == [1.0] * SIZE

    def test_a_memory_that_was_lost_counts_once(self) -> None:
        fedavg = strategy(min_clients_ok=2)
        first, second, third = ask(fedavg)
        refusal = ConfigRecord({"reason": "client 3 lost its memory", "memory-lost": True})
        lost = RecordDict({"refusal": refusal})
        replies = [Message(copy.deepcopy(lost), reply_to=message) for message in (second, third)]
        with pytest.raises(TooFewClientsError):
            fedavg.aggregate_train(1, [answer(first), *replies])
        fedavg.aggregate_train(1, [answer(message) for message in ask(fedavg)])
        assert fedavg.memories_lost == 2

    def test_a_disk_that_fails_is_the_clients_own_or_ends_the_run(self) -> None:
        """On one machine it is the server's disk too."""
        refusal = RecordDict({"refusal": ConfigRecord({"reason": "blobs/x is damaged"})})
        for one_machine in (False, True):
            fedavg = strategy()
            fedavg.exchange.nodes.share_memory = one_machine
            first, *others = ask(fedavg)
            replies = [Message(copy.deepcopy(refusal), reply_to=first), *map(answer, others)]
            if one_machine:
                with pytest.raises(RunError, match=r"^blobs/x is damaged$"):
                    fedavg.aggregate_train(1, replies)
            else:
                fedavg.aggregate_train(1, replies)
                assert fedavg.exchange.costs.errors == ["blobs/x is damaged"]
                assert fedavg.memories_lost == 0

    def test_the_next_round_asks_whom_it_would_have_asked(self) -> None:
        fedavg, calm = strategy(min_clients_ok=3), strategy()
        ask(fedavg)
        with pytest.raises(TooFewClientsError):
            fedavg.aggregate_train(1, [])
        ask(fedavg, 2)
        ask(calm, 2)
        assert fedavg._sampled == calm._sampled

    def test_the_same_clients_where_there_are_no_others(self) -> None:
        fedavg = strategy(fraction_train=0.8)
        ask(fedavg)
        asked = set(fedavg._sampled)
        with pytest.raises(TooFewClientsError):
            fedavg.aggregate_train(1, [])
        ask(fedavg)
        assert len(fedavg._sampled) == 8
        assert set(range(10)) - asked <= set(fedavg._sampled)

    def test_if_nobody_is_finite_training_diverged(self) -> None:
        fedavg = strategy()
        sent = ask(fedavg)
        with pytest.raises(RunError, match=r"training diverged in round 1 \(client . sent"):
            fedavg.aggregate_train(1, [BAD["NaN"][0](message) for message in sent])


def statistics() -> RidgeStatistics:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 5, generator=generator)
    return RidgeStatistics(5, 3).add(features, torch.tensor([0, 0, 0, 2, 2, 2, 2]))


class TestSums:
    def test_sums_of_features_are_taken(self) -> None:
        check_statistics(statistics(), 50)
        check_statistics(RidgeStatistics(5, 3), 50)  # none of its images is in the head's share
        check_statistics(RidgeStatistics(5, 3).add(torch.ones(1, 5), torch.tensor([1])), 50)
        check_statistics(RidgeStatistics(5, 3).add(torch.zeros(2, 5), torch.tensor([1, 1])), 50)

    @given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([1e-12, 1.0, 1e6]))
    def test_whatever_the_features_are(self, seed: int, number: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        features = scale * (3 + torch.randn(number, 5, generator=generator))
        labels = torch.randint(0, 3, (number,), generator=generator)
        check_statistics(RidgeStatistics(5, 3).add(features, labels), 50)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda s: s.class_counts.mul_(100), "class counts"),
            (lambda s: s.class_counts.add_(0.5), "class counts"),
            (lambda s: s.class_counts.neg_(), "class counts"),
            (lambda s: s.class_counts.zero_(), "class of which it has no image"),
            (lambda s: s.class_sums[1].add_(1), "class of which it has no image"),
            (lambda s: s.class_sums.mul_(10), "Gram matrix"),
            (lambda s: s.gram.neg_(), "Gram matrix"),
            (lambda s: s.gram.diagonal().sub_(9), "Gram matrix"),
            (lambda s: s.gram.zero_(), "Gram matrix"),
        ],
    )
    def test_what_no_features_have_is_rejected(
        self, change: Callable[[RidgeStatistics], Any], said: str
    ) -> None:
        found = statistics()
        change(found)
        with pytest.raises(ReplyError, match=said):
            check_statistics(found, 50)


class TestScoresAndMasks:
    def test_scores(self) -> None:
        check_scores(torch.tensor([0.0, 2.0, -1.0, 3.0]), 2, 4)  # a statistic may be negative
        with pytest.raises(ReplyError, match="a sensitivity of -2; none is negative"):
            check_scores(torch.tensor([0.0, -2.0]), 2, 2)
        for bad in ([1.0], [1.0, math.inf], [1.0, math.nan]):
            with pytest.raises(ReplyError):
                check_scores(torch.tensor(bad), 2, 2)

    @given(st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
    def test_bits_of_a_mask(self, entries: list[bool]) -> None:
        mask = FlatMask(torch.tensor(entries))
        bits = torch.frombuffer(bytearray(mask.to_bits()), dtype=torch.uint8)
        check_mask(bits, len(entries), sum(entries))
        check_mask(bits, len(entries), None)
        with pytest.raises(ReplyError, match="a mask that trains"):
            check_mask(bits, len(entries), sum(entries) + 1)
        with pytest.raises(ReplyError, match="of shape"):
            check_mask(torch.cat([bits, bits]), len(entries), None)

    def test_bits_beyond_the_entries(self) -> None:
        with pytest.raises(ReplyError, match="bits beyond its 5 entries"):
            check_mask(torch.tensor([255], dtype=torch.uint8), 5, None)
