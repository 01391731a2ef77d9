"""FedNova on quadratics whose clients take unequal numbers of steps."""

import pytest
import torch
from torch import Tensor

from benchmarks.harness.quadratics import Client, Server, clients, optimum, schedule
from fedta_app.algorithms.base import Algorithm, Reply
from fedta_app.algorithms.fednova import FedNova

N, SIZE = 5, 4


def one_pass(batch_size: int = 4) -> list[Client]:
    """Return clients of 3 to 23 examples that each take one pass: local-steps = 0."""
    those = clients(N, SIZE)
    for client in those:
        client.steps = -(-client.num_examples // batch_size)
    return those


def end(algorithm: Algorithm, those: list[Client], lr: float, momentum: float) -> Tensor:
    start = torch.zeros(SIZE, dtype=torch.float64)
    found = Server(algorithm, those, start, lr=lr, momentum=momentum)
    for _ in range(round(8 / lr)):
        found.run_round(range(N))
    return found.weights


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_it_reaches_the_weighted_optimum_where_fedavg_is_biased(momentum: float) -> None:
    """What is left of FedNova's distance is the clients' drift, in proportion to the rate."""
    best = optimum(one_pass(), by_examples=True)
    nova, plain = [], []
    for lr in (0.04, 0.01):
        found = end(FedNova(momentum=momentum), one_pass(), lr, momentum)
        nova.append(float((found - best).norm()))
        plain.append(float((end(Algorithm(), one_pass(), lr, momentum) - best).norm()))
    assert nova[1] < 0.3 * nova[0] and nova[1] < 0.05
    assert plain[1] > 0.2  # it stays, whatever the rate


def test_a_round_is_the_papers_rule_written_out() -> None:
    found = Server(FedNova(momentum=0.5), one_pass(), torch.zeros(SIZE).double(), momentum=0.5)
    chosen = [0, 2, 4]
    those = [found.clients[k] for k in chosen]
    examples = sum(client.num_examples for client in those)
    direction, tau = torch.zeros(SIZE).double(), 0.0
    for client in those:
        w, buffer, norm, coefficient = torch.zeros(SIZE).double(), 0.0, 0.0, 0.0
        for _ in range(client.steps):
            buffer = 0.5 * buffer + client.gradient(w)  # type: ignore[assignment]
            w = w - found.lr * buffer
            coefficient = 0.5 * coefficient + 1
            norm += coefficient
        direction += client.num_examples / examples * w / norm
        tau += client.num_examples / examples * norm
    found.run_round(chosen)
    torch.testing.assert_close(found.weights, tau * direction, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_equal_numbers_of_steps_are_fedavg_bit_for_bit(steps: int, momentum: float) -> None:
    start = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    nova = Server(FedNova(momentum=momentum), clients(N, SIZE), start, steps, momentum=momentum)
    plain = Server(Algorithm(), clients(N, SIZE), start, steps, momentum=momentum)
    for chosen in schedule(6, N, 3):
        nova.run_round(chosen)
        plain.run_round(chosen)
        assert torch.equal(nova.weights, plain.weights)


def test_own_masks_take_the_mean_of_the_normalised_updates_over_those_who_trained() -> None:
    masks = [torch.tensor([True, True, False]), torch.tensor([True, False, False])]
    updates = [torch.tensor([2.0, 4.0, 0.0]), torch.tensor([9.0, 0.0, 0.0])]
    total = FedNova().accumulator()
    total.add(Reply(updates[0], 10, 2, 0.1, trained=masks[0]))
    total.add(Reply(updates[1], 30, 6, 0.1, trained=masks[1]))
    move, _ = FedNova().step({}, total.result(), 1)
    tau = (10 * 2 + 30 * 6) / 40
    expected = tau * torch.tensor([(10 * 2 / 2 + 30 * 9 / 6) / 40, 4 / 2, 0])
    torch.testing.assert_close(move.scale * move.direction, expected)
