"""DP-FedAvg by hand-made replies, its accountant against closed forms, and what it refuses."""

import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from engine.transport import MEMORY, WIRE, pack, unpack
from fedta_app.algorithms import MeanOfReplies, make_algorithm
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.runs.blobs import BlobStore
from fedta_app.seeding import torch_generator
from strategies import Exchange, FedAvg, FederatedStrategy, Nodes
from strategies.private import PrivateStrategy, epsilon
from strategies.reply_checks import TooFewClientsError

NODES = Nodes({partition: 1000 - 7 * partition for partition in range(10)})
SIZE = 5


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    yield


OPTIONS: dict[str, Any] = {
    "fraction_train": 0.4, "seed": 0, "learning_rate": lambda r: 0.1, "steps_of": lambda n: 4,
}  # fmt: skip


def exchange() -> Exchange:
    return Exchange(NODES, {"num-clients": 10}, BlobStore(Path("unused")), WIRE)


def private(clip: float = 1.0, noise: float = 0.0, poisson: bool = False) -> PrivateStrategy:
    algorithm = make_algorithm("fedavg", {})
    given = {"clip": clip, "noise": noise, "poisson": poisson}
    return PrivateStrategy(exchange(), algorithm, **given, **OPTIONS)


def moved(
    strategy: FederatedStrategy, updates: dict[int, torch.Tensor], number: int = 1, size: int = SIZE
) -> torch.Tensor:
    """Return the weights after a round from zero; who has no update does not answer."""
    sent = strategy.configure_train(number, pack(torch.zeros(size), MEMORY), ConfigRecord(), None)  # type: ignore[arg-type]
    replies = []
    for place, message in enumerate(sent):
        message.metadata.__dict__["_message_id"] = f"{number}-{place}"
        client = int(message.content.config_records["config"]["partition-id"])  # type: ignore[arg-type]
        if client in updates:
            said = {"num-examples": client + 1, "num-steps": 4, "train-loss": 1.0}
            metrics = MetricRecord({**said, "start-loss": 0.0})
            arrays = pack(updates[client], WIRE)
            content = RecordDict({"arrays": arrays, "metrics": metrics})
            replies.append(Message(content, reply_to=message))
    return unpack(strategy.aggregate_train(number, replies)[0], MEMORY).clone()


def drawn(seed: int = 0, scale: float = 3.0) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {client: scale * torch.randn(SIZE, generator=generator) for client in range(10)}


def test_without_noise_and_bound_it_is_fedavg_with_equal_weights_on_bits() -> None:
    fedavg = FedAvg(exchange(), **OPTIONS)
    fedavg.accumulator = lambda: MeanOfReplies(by_examples=False)
    found = moved(private(clip=math.inf), drawn())
    assert torch.equal(found, moved(fedavg, drawn()))
    assert not torch.equal(found, moved(FedAvg(exchange(), **OPTIONS), drawn()))


@given(st.integers(0, 1000), st.floats(0.1, 20.0))
def test_it_is_the_clipped_sum_over_the_expected_number_whoever_answers(
    seed: int, clip: float
) -> None:
    strategy, updates = private(clip=clip), drawn(seed)
    sampled = NODES.sample(0.4, 0, "train", 1)
    updates.pop(sampled[0])
    naive = torch.zeros(SIZE, dtype=torch.float64)
    for client in sampled[1:]:
        update = updates[client].double()
        naive += update * min(1.0, clip / float(update.norm()))
    torch.testing.assert_close(moved(strategy, updates).double(), naive / 4, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 1000), st.sampled_from([0.0, 1e-3, 1.0, 1e30]))
def test_one_client_moves_it_by_no_more_than_the_noise_is_made_for(seed: int, scale: float) -> None:
    updates, one = drawn(seed), NODES.sample(0.4, 0, "train", 1)[2]
    before = moved(private(clip=0.7), updates)
    another = {**updates, one: -scale * updates[one]}
    assert float((moved(private(clip=0.7), another) - before).norm()) <= 2 * 0.7 / 4 * (1 + 1e-5)
    del updates[one]
    assert float((moved(private(clip=0.7), updates) - before).norm()) <= 0.7 / 4 * (1 + 1e-5)


def test_the_noise_is_keyed_by_the_round_and_has_its_deviation() -> None:
    size = 50_000
    still = {client: torch.zeros(size) for client in range(10)}
    rounds = [moved(private(clip=0.5, noise=3.0), still, number, size) for number in (1, 2, 1)]
    assert torch.equal(rounds[0], rounds[2]) and not torch.equal(rounds[0], rounds[1])
    expected = torch.randn(size, generator=torch_generator(0, "dp-noise", "train", 1))
    torch.testing.assert_close(rounds[0], expected * (3.0 * 0.5 / 4))
    assert float(rounds[1].std()) == pytest.approx(3.0 * 0.5 / 4, rel=0.02)


class TestPoisson:
    def test_each_client_is_sampled_on_its_own(self) -> None:
        strategy = private(poisson=True)
        rounds = [strategy._sample(number, ()) for number in range(2000)]
        times = torch.zeros(10)
        for sampled in rounds:
            assert sampled == sorted(set(sampled)) == strategy._sample(rounds.index(sampled), ())
            times[sampled] += 1
        assert (times / 2000 - 0.4).abs().max() < 0.045  # four standard deviations
        sizes = torch.tensor([float(len(sampled)) for sampled in rounds])
        assert float(sizes.var()) == pytest.approx(10 * 0.4 * 0.6, rel=0.15)

    def test_a_round_without_clients_is_noise_alone(self) -> None:
        strategy = private(noise=2.0, poisson=True)
        number = next(r for r in range(1, 2000) if not strategy._sample(r, ()))
        noise = torch.randn(SIZE, generator=torch_generator(0, "dp-noise", "train", number))
        arrays = pack(torch.zeros(SIZE), MEMORY)
        assert list(strategy.configure_train(number, arrays, ConfigRecord(), None)) == []  # type: ignore[arg-type]
        found, metrics = strategy.aggregate_train(number, [])
        torch.testing.assert_close(unpack(found, MEMORY), noise * (2.0 / 4))
        assert "train-loss" not in metrics

    def test_a_round_in_which_all_fail_is_drawn_anew(self) -> None:
        strategy = private(poisson=True)
        with pytest.raises(TooFewClientsError):
            moved(strategy, {})
        first = strategy._sampled
        moved(strategy, drawn())
        assert strategy._sampled not in ([], first)


def divergence(q: float, noise: float, order: int) -> float:
    """Return the Renyi divergence of the Poisson sampled Gaussian mechanism at a whole order.

    Mironov, Talwar and Zhang, 2019, section 3.3.
    """
    terms = [
        math.log(math.comb(order, k)) + (order - k) * math.log1p(-q) + k * math.log(q)
        + k * (k - 1) / (2 * noise**2)
        for k in range(order + 1)
    ]  # fmt: skip
    largest = max(terms)
    return (largest + math.log(math.fsum(math.exp(t - largest) for t in terms))) / (order - 1)


def tightened(divergence: float, order: int, delta: float) -> float:
    """Return epsilon from a Renyi divergence (Canonne, Kamath and Steinke, 2020, theorem 21)."""
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


class TestAccountant:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("dp_accounting")

    @pytest.mark.parametrize(
        ("noise", "epochs", "published"), [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.1)]
    )
    def test_the_mnist_tutorial_of_tensorflow_privacy(
        self, noise: float, epochs: int, published: float
    ) -> None:
        """Its figures are by an older step from divergence to epsilon; the divergence is ours."""
        rounds, delta = epochs * 60_000 // 256, 1e-5
        found = {order: rounds * divergence(256 / 60_000, noise, order) for order in range(2, 65)}
        old = min(d - math.log(delta) / (order - 1) for order, d in found.items())
        assert old == pytest.approx(published, abs=0.03)
        ours = epsilon(
            rounds, noise=noise, clients=256, population=60_000, delta=delta, poisson=True
        )
        new = min(tightened(d, order, delta) for order, d in found.items())
        assert ours == pytest.approx(new, rel=1e-6) and ours < old

    @pytest.mark.parametrize("poisson", [True, False])
    def test_with_all_clients_it_is_the_gaussian_mechanism(self, poisson: bool) -> None:
        """Divergence order / (2 z^2); a fixed number means replacing one, which moves twice C."""
        multiplier, rounds, delta = (3.0 if poisson else 1.5), 10, 1e-4
        expected = min(
            tightened(rounds * order / (2 * multiplier**2), order, delta) for order in range(2, 65)
        )
        given = {"clients": 10, "population": 10, "delta": delta, "poisson": poisson}
        assert epsilon(rounds, noise=3.0, **given) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("poisson", [True, False])
    def test_it_grows_with_rounds_and_falls_with_noise(self, poisson: bool) -> None:
        given: dict[str, Any] = {"clients": 10, "population": 100, "delta": 1e-4}
        given["poisson"] = poisson
        by_round = [epsilon(number, noise=4.0, **given) for number in (1, 10, 100)]
        by_noise = [epsilon(10, noise=noise, **given) for noise in (8.0, 4.0, 2.0)]
        assert all(a < b for found in (by_round, by_noise) for a, b in pairwise(found))


def test_without_the_package_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"dp-noise = 1 .* pip install \"fedta\[privacy\]\""):
        private(noise=1.0).epsilon(1, 1e-5)


DP = {"dp-noise": 1.0, "update-bound": 0.5, "update-bound-kind": "fixed"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"update-bound": 0.0}, "dp-noise = 1 is not allowed with update-bound = 0 and update-b"),
        ({"update-bound-kind": "median"}, "update-bound-kind is fixed there"),
        ({"strategy": "q-ffl"}, "dp-noise = 1 is not allowed with strategy = 'q-ffl'"),
        ({"strategy": "feddyn"}, "update-bound = 0.5 is not allowed with strategy = 'feddyn': its"),
        ({"strategy": "fedmedian"}, "whose server needs more of the clients than the mean"),
        ({"strategy": "fednova"}, "strategy = 'fednova'"),
        ({"num-clients": 100, "dp-delta": 0.01}, "dp-delta is below 1 / num-clients"),
        ({"superclient-clients": 2}, "superclient-clients = 2 is not allowed with update-bound"),
        ({"interference-every": 1}, "with interference-every = 1: it publishes"),
        ({"task-figures": True}, "with task-figures = true: it publishes"),
        ({"adacomm-rounds": 2}, "with adacomm-rounds = 2: the local steps would follow"),
        ({"min-clients-ok": 2}, "min-clients-ok is 1"),
        (
            {"mask-rule": "random", "head": "ridge", "mask-scope": "client"},
            "with mask-scope = 'client': which weights a client trains",
        ),
        (
            {"head": "ridge", "head-refresh": 1, "head-refresh-clients": "sampled"},
            "head-refresh-clients is all",
        ),
    ],
)
def test_what_would_publish_more_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        RunConfig.from_mapping({**DP, **values})
    assert said in str(refusal.value)
    RunConfig.from_mapping({**DP, **values, "engine": "centralized", "strategy": "fedavg"})


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedadam", "ditto", "fedlamb"])
def test_what_takes_the_mean_alone_is_allowed(name: str) -> None:
    RunConfig.from_mapping({**DP, "strategy": name})
