"""FedDyn on quadratics whose optimum is known, and the bookkeeping of its gradients."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from benchmarks.harness.quadratics import Server, clients, optimum, schedule
from fedta_app.algorithms.base import Algorithm, LocalRule, Move, Total, Vectors
from fedta_app.algorithms.feddyn import FedDyn
from fedta_app.algorithms.fedprox import FedProx
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError

N, SIZE = 6, 5


def server(algorithm: Algorithm, **values: float) -> Server:
    those = clients(N, SIZE)
    for client in those:
        client.num_examples = 1  # FedProx and FedAvg weigh by examples, FedDyn does not
    return Server(algorithm, those, torch.zeros(SIZE, dtype=torch.float64), **values)  # type: ignore[arg-type]


def distance(found: Server) -> float:
    return float((found.weights - optimum(found.clients)).norm())


@pytest.mark.parametrize(
    ("momentum", "steps", "rounds"), [(0.0, 4, 800), (0.9, 4, 800), (0.0, 60, 150), (0.9, 60, 150)]
)
def test_it_reaches_the_optimum_that_fedavg_misses(
    momentum: float, steps: int, rounds: int
) -> None:
    values = {"lr": 0.05, "momentum": momentum, "steps": steps}
    ours = server(FedDyn(num_clients=N, pull=1.0), **values)
    fedavg = server(Algorithm(), **values)
    for number, chosen in enumerate(schedule(rounds, N, 3)):
        ours.run_round(chosen)
        if number < 150:
            fedavg.run_round(range(N))  # everybody in every round: no noise of sampling
    assert distance(ours) < 1e-8
    assert distance(fedavg) > 0.01


def test_the_updates_are_those_of_algorithm_1_written_out() -> None:
    found = server(FedDyn(num_clients=N, pull=0.7), lr=0.02)
    x, h = torch.zeros(SIZE).double(), torch.zeros(SIZE).double()
    own = [torch.zeros(SIZE).double() for _ in range(N)]
    for chosen in schedule(8, N, 3):
        ends = []
        for k in chosen:
            w = x.clone()
            for _ in range(4):
                w = w - 0.02 * (found.clients[k].gradient(w) - own[k] + 0.7 * (w - x))
            own[k] = own[k] - 0.7 * (w - x)
            ends.append(w)
        h = h - 0.7 / N * torch.stack([w - x for w in ends]).sum(0)
        x = torch.stack(ends).mean(0) - h / 0.7
        found.run_round(chosen)
        torch.testing.assert_close(found.weights, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_servers_gradient_is_the_mean_of_all_clients_gradients(momentum: float) -> None:
    found = server(FedDyn(num_clients=N, pull=0.3), momentum=momentum)
    for chosen in schedule(12, N, 2):
        found.run_round(chosen)
        assert found.state is not None
        zero = torch.zeros(SIZE, dtype=torch.float64)
        own = [client.memory.get("gradient", zero) for client in found.clients]
        mean = torch.stack(own).mean(0)
        torch.testing.assert_close(found.state["gradient"], mean, rtol=1e-12, atol=1e-14)


def test_own_masks_keep_an_entry_the_mean_over_its_holders_and_reach_the_optimum() -> None:
    generator = torch.Generator().manual_seed(3)
    found = server(FedDyn(num_clients=N, pull=1.0))
    for client in found.clients:
        client.mask = torch.rand(SIZE, generator=generator) < 0.6
        client.mask[4] = False
    masks = torch.stack([client.mask for client in found.clients])  # type: ignore[misc]
    holders, zero = masks.sum(0), torch.zeros(SIZE, dtype=torch.float64)
    for chosen in schedule(800, N, 3):
        before, nobody = found.weights.clone(), ~masks[chosen].any(0)
        found.run_round(chosen)
        assert torch.equal(found.weights[nobody], before[nobody])
    own = zero.clone()
    for client in found.clients:
        own[client.mask] += client.memory["gradient"]
    assert found.state is not None and int(holders[4]) == 0
    torch.testing.assert_close(found.state["gradient"], own / holders.clamp(min=1))
    curvatures = torch.stack([client.curvature for client in found.clients]) * masks
    optima = torch.stack([client.optimum for client in found.clients])
    best = ((curvatures * optima).sum(0) / curvatures.sum(0)).nan_to_num(0.0)
    torch.testing.assert_close(found.weights, best, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class _HeldAtZero(FedDyn):
    """FedDyn whose g_k and h stay zero: its pull alone."""

    name: ClassVar[str] = ""

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        return super().local(start, received, {})

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        return Move(total.mean), {}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_pull_alone_is_fedprox_bit_for_bit(momentum: float) -> None:
    held = server(_HeldAtZero(num_clients=N, pull=0.7), momentum=momentum)
    prox = server(FedProx(pull=0.7), momentum=momentum)
    for chosen in schedule(5, N, 3):
        held.run_round(chosen)
        prox.run_round(chosen)
        assert torch.equal(held.weights, prox.weights)


def test_a_huge_pull_holds_the_clients_where_they_are() -> None:
    found = server(FedDyn(num_clients=N, pull=1e6), lr=1e-7)
    found.run_round(range(N))
    assert float(found.weights.abs().max()) < 1e-5


def test_one_client_alone_ends_at_the_minimum_of_its_loss() -> None:
    only = clients(1, SIZE)
    found = Server(FedDyn(pull=0.5), only, torch.zeros(SIZE, dtype=torch.float64))
    for _ in range(600):
        found.run_round([0])
    torch.testing.assert_close(found.weights, only[0].optimum)


def test_the_optimum_is_a_fixed_point() -> None:
    found = server(FedDyn(num_clients=N, pull=0.5))
    found.weights = best = optimum(found.clients)
    for client in found.clients:
        client.memory = {"gradient": client.gradient(best)}
    found.run_round([0, 2])
    torch.testing.assert_close(found.weights, best)


def test_a_client_that_lost_its_gradient_goes_on_from_zero() -> None:
    found = server(FedDyn(num_clients=N, pull=1.0))
    for _ in range(3):
        found.run_round(range(N))
    found.clients[2].memory = {}
    found.run_round(range(N))
    assert "gradient" in found.clients[2].memory and found.weights.isfinite().all()


def test_without_a_pull_it_is_refused_before_any_work() -> None:
    sentence = "pull = 0 is not allowed with strategy = 'feddyn': pull is above 0 there"
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.from_mapping({"strategy": "feddyn", "pull": 0})
    RunConfig.from_mapping({"strategy": "fedprox", "pull": 0})
    # Without a federation nothing reads the key.
    RunConfig.from_mapping({"strategy": "feddyn", "pull": 0, "engine": "centralized"})
