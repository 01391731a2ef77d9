"""Robust rules beside Flower's own, and under an attack on quadratics."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from benchmarks.harness.quadratics import Server, clients
from fedta_app.algorithms import make_algorithm
from fedta_app.algorithms.base import Algorithm, Reply
from fedta_app.algorithms.robust import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError

SIZE = 300
RULES = [
    FedMedian(),
    FedTrimmedAvg(trimmed_share=0.2),
    Krum(malicious_clients=1),
    MultiKrum(malicious_clients=1, selected_updates=4),
    Bulyan(malicious_clients=1),
]
NAMES = [rule.name for rule in RULES]


def updates(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SIZE, generator=generator) for _ in range(number)]


def combined(rule: Algorithm, those: Sequence[Tensor], order: Sequence[int] = ()) -> Tensor:
    total = rule.accumulator()
    for number in order or range(len(those)):
        total.add(Reply(those[number], 10 + 3 * number, 4, 0.1))
    return total.result().mean


def flowers(theirs: Any, those: Sequence[Tensor]) -> np.ndarray:
    """Return what a strategy of Flower makes of the same arrays."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    replies = []
    for number, update in enumerate(those):
        arrays = ArrayRecord(OrderedDict(w=Array(update.numpy())))
        metrics = MetricRecord({"num-examples": 10 + 3 * number})
        question = Message(RecordDict(), 2 + number, "train")
        question.metadata.__dict__["_message_id"] = str(number)
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies.append(Message(content, reply_to=question))
    found, _ = theirs.aggregate_train(1, replies)
    values: np.ndarray = found["w"].numpy()
    return values


@pytest.mark.parametrize("number", [7, 8, 10])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FedMedian(), flower.FedMedian()),
        (FedTrimmedAvg(trimmed_share=0.2), flower.FedTrimmedAvg(beta=0.2)),
        (Krum(malicious_clients=2), flower.Krum(num_malicious_nodes=2)),
        (
            MultiKrum(malicious_clients=2, selected_updates=4),
            flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4),
        ),
        (Bulyan(malicious_clients=1), flower.Bulyan(num_malicious_nodes=1)),
    ],
    ids=NAMES,
)
def test_it_is_flowers_on_the_same_arrays(ours: Algorithm, theirs: Any, number: int) -> None:
    those = updates(number)
    expected = flowers(theirs, those)
    np.testing.assert_allclose(combined(ours, those).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("selected", [0, 4, 8])
def test_where_replies_are_lost_multikrum_averages_no_more_than_are_honest(
    selected: int,
) -> None:
    rule = MultiKrum(malicious_clients=2, num_clients=10, selected_updates=selected)
    near = [torch.full((4,), 1.0 + i / 100) for i in range(5)]
    found = combined(rule, [*near, torch.full((4,), -100.0), torch.full((4,), -100.1)])
    assert 1.0 <= float(found.min()) <= float(found.max()) <= 1.04


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_order_of_arrival_is_no_matter(rule: Algorithm) -> None:
    """Sums are in the order of arrival, which a run makes that of the clients."""
    those = updates(9)
    found = combined(rule, those, order=[4, 0, 8, 2, 6, 1, 7, 3, 5])
    torch.testing.assert_close(found, combined(rule, those))


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize("factor", [-10.0, 1e6, float("nan")])
def test_a_scaled_attacker_leads_the_mean_away_and_the_rule_not_far(
    rule: Algorithm, factor: float
) -> None:
    """Nine honest clients that nearly agree; the tenth multiplies its update."""
    distances = []
    for algorithm in (Algorithm(), rule):
        those = clients(10, 4)
        for client in those:
            client.curvature = torch.full_like(client.curvature, 1.0) + 0.1 * client.curvature
            client.optimum = 3.0 + 0.1 * client.optimum
            client.num_examples = 1
        found = Server(algorithm, those, torch.zeros(4, dtype=torch.float64), lr=0.1)
        original = found._train

        def attacked(
            client: Any, received: Any, train: Any = original, evil: Any = those[9]
        ) -> Any:
            reply, memory = train(client, received)
            changed = reply._replace(update=reply.update * factor) if client is evil else reply
            return changed, memory

        found._train = attacked  # type: ignore[method-assign]
        for _ in range(40):
            found.run_round(range(10))
        distances.append(float((found.weights - 3.0).norm()))
    assert distances[1] < 0.5
    assert not distances[0] < 2.0


@pytest.mark.parametrize("rule", [Krum(malicious_clients=2), Bulyan(malicious_clients=1)])
def test_with_too_few_replies_no_step_is_made(
    rule: Algorithm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert combined(rule, updates(6)).eq(0).all()
    assert f"{rule.name}: 6 replies, 7 are needed" in capsys.readouterr().out
    assert not combined(rule, updates(7)).eq(0).any()


@pytest.mark.parametrize("rule", RULES[2:], ids=NAMES[2:])
def test_an_update_that_is_not_finite_is_nobodys_neighbour(rule: Algorithm) -> None:
    """Comparisons with NaN are false: a sort could leave such a score where it is, at the front."""
    those = updates(9)
    those[0] = those[0] * float("nan")
    assert combined(rule, those).isfinite().all()


def test_updates_are_kept_though_their_memory_is_used_again() -> None:
    total, memory = FedMedian().accumulator(), torch.empty(2)
    for value in (2.0, 1.0, 5.0):
        total.add(Reply(memory.fill_(value), 1, 4, 0.1))
    assert total.result().mean.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_clients_own_are_refused(name: str) -> None:
    masks = {"mask-rule": "random", "head": "ridge", "mask-scope": "client"}
    with pytest.raises(ConfigError, match=f"'client' is not allowed with strategy = '{name}'"):
        RunConfig.from_mapping({**masks, "strategy": name})
    RunConfig.from_mapping({**masks, "strategy": name, "mask-scope": "global"})
    total = make_algorithm(name, {}).accumulator()
    with pytest.raises(ValueError, match="not defined for masks"):
        total.add(Reply(torch.ones(2), 1, 4, 0.1, trained=torch.tensor([True, False])))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"strategy": "krum", "malicious-clients": 4}, "2 * malicious-clients + 3 = 11 of them"),
        ({"strategy": "bulyan", "malicious-clients": 2}, "4 * malicious-clients + 3 = 11 of them"),
        (
            {"strategy": "multikrum", "malicious-clients": 3, "selected-updates": 8},
            "selected-updates is at most 7 there",
        ),
        ({"strategy": "fedtrimmedavg", "trimmed-share": 0.5}, "from 0 to below 0.5"),
        (
            {"strategy": "krum", "malicious-clients": 2, "superclient-clients": 5},
            "and 2 superclients a round: it needs at least 2 * malicious-clients + 3 = 7 of them",
        ),
    ],
)
def test_rules_that_ten_clients_a_round_cannot_hold_are_refused(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        RunConfig.from_mapping({"num-clients": 100, **values})
    assert sentence in str(refusal.value)
    if "trimmed-share" not in values:  # how many clients there are is not known yet
        RunConfig.from_mapping({"num-clients": 0, **values})
