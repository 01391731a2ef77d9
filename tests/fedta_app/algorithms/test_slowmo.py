"""SlowMo beside FedAvgM, which it is while the rate is constant, and under a schedule."""

import pytest
import torch
from torch import Tensor

from benchmarks.harness.quadratics import Server, clients, schedule
from fedta_app.algorithms.base import Algorithm, Reply
from fedta_app.algorithms.fedopt import FedAvgM, SlowMo

SIZE = 4


def server(algorithm: Algorithm) -> Server:
    return Server(algorithm, clients(4, SIZE), torch.zeros(SIZE, dtype=torch.float64))


@pytest.mark.parametrize("server_lr", [0.0, 0.7])
def test_with_a_constant_rate_it_is_fedavgm(server_lr: float) -> None:
    ours = server(SlowMo(server_momentum=0.6, server_lr=server_lr))
    theirs = server(FedAvgM(server_momentum=0.6, server_lr=server_lr))
    for chosen in schedule(20, 4, 2):
        ours.run_round(chosen)
        theirs.run_round(chosen)
        torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-6, atol=0)


def test_under_a_schedule_it_is_algorithm_1_and_not_fedavgm() -> None:
    ours, fedavgm = server(SlowMo(server_momentum=0.6)), server(FedAvgM(server_momentum=0.6))
    x, u = torch.zeros(SIZE).double(), torch.zeros(SIZE).double()
    for number, chosen in enumerate(schedule(10, 4, 2)):
        gamma = 0.05 * 0.5**number
        those = [ours.clients[k] for k in chosen]
        mean, examples = torch.zeros(SIZE).double(), sum(c.num_examples for c in those)
        for client in those:
            w = x.clone()
            for _ in range(4):
                w = w - gamma * client.gradient(w)
            mean += client.num_examples / examples * w
        u = 0.6 * u + (x - mean) / gamma
        x = x - gamma * u
        for each in (ours, fedavgm):
            each.lr = gamma
            each.run_round(chosen)
        torch.testing.assert_close(ours.weights, x)
    assert float((fedavgm.weights - x).norm()) > 0.1


def test_without_momentum_it_is_fedavg_bit_for_bit_under_any_schedule() -> None:
    ours, plain = server(SlowMo(server_momentum=0.0)), server(Algorithm())
    for number, chosen in enumerate(schedule(5, 4, 2)):
        for each in (ours, plain):
            each.lr = 0.05 / (number + 1)
            each.run_round(chosen)
        assert torch.equal(ours.weights, plain.weights)


def test_an_entry_that_nobody_trains_in_a_round_keeps_its_momentum_and_does_not_move() -> None:
    algorithm, state = SlowMo(), dict[str, Tensor]()
    for mask in (torch.tensor([True, True]), torch.tensor([True, False])):
        total = algorithm.accumulator()
        total.add(Reply(torch.tensor([0.1, 0.2]) * mask, 10, 4, 0.1, trained=mask))
        before = state
        move, found = algorithm.step(state, total.result(), 1)
        state = dict(found)
    assert move.direction[1] == 0 and move.direction[0] != 0
    assert state["velocity"][1] == before["velocity"][1]
