"""SCAFFOLD on quadratics whose optimum is known, and the bookkeeping of its controls."""

import pytest
import torch
from torch import Tensor

from benchmarks.harness.quadratics import Client, Server, clients, optimum, schedule
from fedta_app.algorithms.base import Algorithm, Vectors
from fedta_app.algorithms.fedavg import TaskArithmetic
from fedta_app.algorithms.scaffold import Scaffold

N, SIZE = 6, 5


def server(algorithm: Algorithm, momentum: float = 0.0, **values: float) -> Server:
    steps = int(values.get("steps", 10))
    lr = values.get("lr", 0.02)
    start = torch.zeros(SIZE, dtype=torch.float64)
    return Server(algorithm, clients(N, SIZE), start, steps=steps, lr=lr, momentum=momentum)


def scaffold(momentum: float = 0.0, number: int = N, steps: int = 10) -> Scaffold:
    return Scaffold(num_clients=number, local_steps=steps, momentum=momentum)


def distance(found: Server) -> float:
    return float((found.weights - optimum(found.clients)).norm())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_reaches_the_optimum_that_fedavg_misses(momentum: float) -> None:
    lr = 0.02 * (1 - momentum)
    ours = server(scaffold(momentum), momentum, lr=lr)
    fedavg = server(TaskArithmetic(server_scale=1 / N), momentum, lr=lr)  # the unweighted mean
    for chosen in schedule(400, N, 3):
        ours.run_round(chosen)
        fedavg.run_round(range(N))  # everybody in every round: no noise of sampling
    assert distance(ours) < 1e-9
    assert distance(fedavg) > 0.01


def test_dividing_by_the_number_of_steps_in_spite_of_momentum_does_not_converge() -> None:
    """The trap of methods that are written for plain SGD: the norm matters."""
    wrong = server(scaffold(momentum=0.0), momentum=0.9, lr=0.02)
    right = server(scaffold(momentum=0.9), momentum=0.9, lr=0.02)
    for chosen in schedule(100, N, 3):
        wrong.run_round(chosen)
        right.run_round(chosen)
    assert distance(right) < 1e-6
    assert not distance(wrong) < 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_servers_control_is_the_mean_of_all_clients_controls(momentum: float) -> None:
    found = server(scaffold(momentum), momentum)
    for chosen in schedule(12, N, 2):
        found.run_round(chosen)
        assert found.state is not None
        zero = torch.zeros(SIZE, dtype=torch.float64)
        own = [client.memory.get("control", zero) for client in found.clients]
        torch.testing.assert_close(found.state["control"], torch.stack(own).mean(0))


def test_the_clients_own_formula_and_the_servers_derivation_agree_where_steps_differ() -> None:
    """Clients of different lengths: the server divides each update by its own norm."""
    found = server(Scaffold(num_clients=N, local_steps=0, momentum=0.9), momentum=0.9)
    for server_round in range(8):
        found.steps = 3 + server_round
        found.run_round([server_round % N, (server_round + 1) % N])
    zero = torch.zeros(SIZE, dtype=torch.float64)
    own = [client.memory.get("control", zero) for client in found.clients]
    assert found.state is not None
    torch.testing.assert_close(found.state["control"], torch.stack(own).mean(0))


def test_different_numbers_of_steps_in_one_round_are_averaged_by_their_own_norms() -> None:
    algorithm = Scaffold(num_clients=2, local_steps=0)
    one, other = clients(2, SIZE)
    found = Server(algorithm, [one, other], torch.zeros(SIZE, dtype=torch.float64))
    found.state = algorithm.init(SIZE)
    total = algorithm.accumulator()
    for steps, client in ((2, one), (9, other)):
        found.steps = steps
        reply, client.memory = found._train(client, {})
        total.add(reply)
    _, state = algorithm.step({}, total.result(), 1)
    mean = (one.memory["control"] + other.memory["control"]) / 2
    torch.testing.assert_close(state["control"], mean)


def test_a_client_that_takes_another_number_of_steps_is_an_error_where_none_may() -> None:
    algorithm = Scaffold(num_clients=2, local_steps=4)
    one, other = clients(2, SIZE)
    found = Server(algorithm, [one, other], torch.zeros(SIZE, dtype=torch.float64))
    total = algorithm.accumulator()
    total.add(found._train(one, {})[0])
    found.steps = 5
    reply = found._train(other, {})[0]
    with pytest.raises(ValueError, match="took 5 local steps"):
        total.add(reply)


class _HeldAtZero(Scaffold):
    """SCAFFOLD whose controls stay zero."""

    def step(self, state, total, server_round):  # type: ignore[no-untyped-def]
        return super().step(state, total, server_round)[0], {}

    def local(self, start: Tensor, received: Vectors, memory: Vectors):  # type: ignore[no-untyped-def]
        return super().local(start, {}, {})


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_with_controls_at_zero_it_is_the_unweighted_fedavg_bit_for_bit(momentum: float) -> None:
    held = server(_HeldAtZero(num_clients=N, local_steps=10, momentum=momentum), momentum)
    plain = server(TaskArithmetic(server_scale=1 / 3), momentum)
    for chosen in schedule(5, N, 3):
        held.run_round(chosen)
        plain.run_round(chosen)
        assert torch.equal(held.weights, plain.weights)


def test_one_client_alone_is_plain_sgd_to_rounding() -> None:
    only = clients(1, SIZE)
    start = torch.zeros(SIZE, dtype=torch.float64)
    found = Server(scaffold(number=1, steps=4), only, start)
    plain = Server(Algorithm(), clients(1, SIZE), start)
    for _ in range(10):
        found.run_round([0])
        plain.run_round([0])
    torch.testing.assert_close(found.weights, plain.weights)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_own_masks_keep_the_control_of_an_entry_the_mean_over_its_holders(exponent: float) -> None:
    generator = torch.Generator().manual_seed(3)
    those = clients(N, SIZE)
    for client in those:
        client.mask = torch.rand(SIZE, generator=generator) < 0.6
    those[0].mask = torch.tensor([True, False, True, True, False])
    algorithm = Scaffold(num_clients=N, local_steps=4, coverage_exponent=exponent)
    found = Server(algorithm, those, torch.zeros(SIZE, dtype=torch.float64))
    for chosen in schedule(15, N, 3):
        found.run_round(chosen)
    holders = torch.stack([client.mask for client in those]).sum(0)  # type: ignore[misc]
    own = torch.zeros(SIZE, dtype=torch.float64)
    for client in those:
        if "control" in client.memory:
            assert client.mask is not None
            own[client.mask] += client.memory["control"]
    assert found.state is not None
    torch.testing.assert_close(found.state["control"], own / holders.clamp(min=1))
    untouched = holders == 0
    assert torch.equal(found.weights[untouched], torch.zeros(int(untouched.sum())).double())


def test_a_client_that_lost_its_control_goes_on_from_zero() -> None:
    found = server(scaffold())
    for _ in range(3):
        found.run_round(range(N))
    found.clients[2].memory = {}
    found.run_round(range(N))
    assert "control" in found.clients[2].memory
    assert found.weights.isfinite().all()


def test_a_frozen_optimum_is_a_fixed_point() -> None:
    """At the optimum, with the clients' own gradients as controls, nothing moves."""
    found = server(scaffold())
    best = optimum(found.clients)
    found.weights = best.clone()
    for client in found.clients:
        client.memory = {"control": client.gradient(best)}
    found.state = {"control": torch.zeros(SIZE, dtype=torch.float64)}
    found.run_round(range(N))
    torch.testing.assert_close(found.weights, best)


def test_clients_without_curvature_move_by_their_gradients_alone() -> None:
    zero = torch.zeros(SIZE, dtype=torch.float64)
    still = [Client(zero, zero) for _ in range(2)]
    found = Server(scaffold(number=2, steps=4), still, zero.clone())
    for _ in range(3):
        found.run_round([0, 1])
    assert torch.equal(found.weights, zero)
