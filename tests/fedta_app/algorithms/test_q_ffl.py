"""q-FFL against Algorithm 2 written out, what it is for, and the loss that clients measure."""

import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness.quadratics import Server, clients, schedule
from fedta_app.algorithms.base import Algorithm, Reply
from fedta_app.algorithms.q_ffl import QFFL
from fedta_app.config import RunConfig
from fedta_app.training.client import train_client
from fedta_app.training.steps import evaluate
from fedta_app.training.workspace import build_workspace

N, SIZE = 5, 4


def server(algorithm: Algorithm, **values: Any) -> Server:
    start = torch.zeros(SIZE, dtype=torch.float64)
    return Server(algorithm, clients(N, SIZE), start, **values)


@pytest.mark.parametrize("q", [0.5, 1.0, 3.0])
def test_a_round_is_algorithm_2_written_out(q: float) -> None:
    found = server(QFFL(fairness=q))
    for chosen in schedule(4, N, 3):
        x, numerator, denominator = found.weights.clone(), torch.zeros(SIZE).double(), 0.0
        for client in (found.clients[k] for k in chosen):
            w = x.clone()
            for _ in range(found.steps):
                w = w - found.lr * client.gradient(w)
            change, loss = (x - w) / found.lr, client.loss(x)
            h = q * loss ** (q - 1) * float(change.square().sum()) + loss**q / found.lr
            numerator += client.num_examples * loss**q * change
            denominator += client.num_examples * h
        found.run_round(chosen)
        torch.testing.assert_close(found.weights, x - numerator / denominator)


@pytest.mark.parametrize("q", [0.0, 2.0])
def test_it_ends_where_the_gradient_of_its_objective_is_zero(q: float) -> None:
    """One step a round: no drift, and sum_k n_k F_k^q grad F_k = 0 exactly there."""
    found = server(QFFL(fairness=q), steps=1, lr=0.1)
    for _ in range(400):
        found.run_round(range(N))
    gradients = [c.num_examples * c.loss(found.weights) ** q * c.gradient(found.weights)
                 for c in found.clients]  # fmt: skip
    assert float(torch.stack(gradients).sum(0).norm()) < 1e-6


def test_a_larger_q_spreads_the_losses_more_evenly() -> None:
    spreads, worst = [], []
    for q in (0.0, 1.0, 5.0):
        found = server(QFFL(fairness=q), steps=1, lr=0.1)
        for _ in range(400):
            found.run_round(range(N))
        losses = torch.tensor([client.loss(found.weights) for client in found.clients])
        spreads.append(float(losses.std()))
        worst.append(float(losses.max()))
    assert spreads[0] > spreads[1] > spreads[2]
    assert worst[0] > worst[1] > worst[2]


@pytest.mark.parametrize("loss", [1e200, 1e308])
def test_a_loss_whose_power_is_too_large_ends_no_round(loss: float) -> None:
    total = QFFL(fairness=3.0).accumulator()
    for start_loss in (1.0, loss):
        total.add(Reply(torch.ones(2), 5, 4, 0.1, start_loss=start_loss))
    assert total.result().mean.isfinite().all()


@pytest.mark.parametrize("losses", [(1.0, 1e-10), (1e-4, 3.0), (1e12, 1e-10), (1e-10, 1e12)])
@pytest.mark.parametrize("fairness", [0.5, 5.0, 10.0, 30.0])
def test_losses_that_are_far_apart_end_no_run(losses: tuple[float, ...], fairness: float) -> None:
    total = QFFL(fairness=fairness).accumulator()
    for start_loss in (*losses, *losses):
        total.add(Reply(torch.full((2,), 0.1), 5000, 4, 0.1, start_loss=start_loss))
    mean = total.result().mean
    assert mean.isfinite().all() and (mean >= 0).all() and (mean <= 0.1).all()


@pytest.mark.parametrize("own_masks", [False, True])
@pytest.mark.parametrize(("fairness", "ratio"), [(0.3, 1e8), (5.0, 1e6), (10.0, 1e3), (10.0, 1e5)])
def test_clients_weigh_by_n_h_in_any_order(fairness: float, ratio: float, own_masks: bool) -> None:
    """The paper's fraction in exact numbers, which no power of a loss overflows."""
    draw = random.Random(str((fairness, ratio, own_masks)))
    dtype, close = (torch.float32, (1e-4, 1e-9)) if own_masks else (torch.float64, (1e-9, 1e-14))
    for _ in range(30):
        replies = []
        for _ in range(5):
            trained = torch.tensor([True, *(draw.random() < 0.5 for _ in range(7))])
            update = torch.tensor([draw.gauss(0, 1e-2) for _ in range(8)], dtype=dtype)
            loss = 3 * ratio ** -draw.choice((0.0, 0.0, draw.random(), 1.0))
            replies.append(Reply(
                update * trained if own_masks else update, draw.randint(1, 500), 4, 0.1,
                trained if own_masks else None, start_loss=loss,
            ))  # fmt: skip
        expected = exact_step(replies, fairness)
        for _ in range(4):
            draw.shuffle(replies)
            total = QFFL(fairness=fairness).accumulator()
            for reply in replies:
                total.add(reply)
            mean = total.result().mean.double()
            torch.testing.assert_close(mean, expected, rtol=close[0], atol=close[1])


def exact_step(replies: list[Reply], q: float) -> Tensor:
    """Return the step of Algorithm 2; entry by entry, the sums are over those who trained it."""
    numerator, denominator = ([Fraction(0)] * len(replies[0].update) for _ in range(2))
    for reply in replies:
        loss, rate = Fraction(reply.start_loss), Fraction(reply.lr)
        power = Fraction(reply.start_loss ** (q - int(q))) * loss ** int(q)  # F^q
        change = [Fraction(u) / rate for u in reply.update.tolist()]
        h = Fraction(q) * power / loss * sum(c * c for c in change) + power / rate
        trained = [True] * len(change) if reply.trained is None else reply.trained.tolist()
        for i, c in enumerate(change):
            numerator[i] += reply.num_examples * power * c * trained[i]
            denominator[i] += reply.num_examples * h * trained[i]
    pairs = zip(numerator, denominator, strict=True)
    return torch.tensor([float(n / d) if d else 0.0 for n, d in pairs], dtype=torch.float64)


def test_without_fairness_it_is_fedavg_bit_for_bit_and_measures_nothing() -> None:
    assert not QFFL(fairness=0.0).local(torch.zeros(1), {}, {}).wants_start_loss
    ours, plain = server(QFFL(fairness=0.0)), server(Algorithm())
    for chosen in schedule(5, N, 3):
        ours.run_round(chosen)
        plain.run_round(chosen)
        assert torch.equal(ours.weights, plain.weights)


def test_own_masks_sum_over_those_who_trained_an_entry() -> None:
    masks = [torch.tensor([True, True, False]), torch.tensor([True, False, False])]
    updates = [torch.tensor([0.2, 0.4, 0.0]), torch.tensor([0.9, 0.0, 0.0])]
    total = QFFL(fairness=2.0).accumulator()
    for update, mask, examples, loss in zip(updates, masks, (10, 30), (0.5, 1.5), strict=True):
        total.add(Reply(update, examples, 4, 0.1, trained=mask, start_loss=loss))
    h = [2 * f * float((u / 0.1).square().sum()) + f**2 / 0.1
         for f, u in zip((0.5, 1.5), updates, strict=True)]  # fmt: skip
    first = (10 * 0.25 * 2.0 + 30 * 2.25 * 9.0) / (10 * h[0] + 30 * h[1])
    expected = torch.tensor([first, 0.25 * 4.0 / h[0], 0.0])
    torch.testing.assert_close(total.result().mean, expected)


@pytest.mark.parametrize("loss", [0.0, 1e-30, 1e30])
def test_extreme_losses_give_finite_steps(loss: float) -> None:
    total = QFFL(fairness=10.0).accumulator()
    for _ in range(2):
        total.add(Reply(torch.ones(3), 10, 4, 0.1, start_loss=loss))
    assert total.result().mean.isfinite().all()


@pytest.mark.parametrize("views", [0, 2])
def test_a_client_measures_its_loss_at_the_global_weights_and_trains_as_ever(views: int) -> None:
    mapping: dict[str, Any] = {"num-clients": 10, "local-steps": 2, "threads": 1}
    mapping["augment"] = bool(views)
    if views:
        mapping |= {"trained-blocks": 1, "cached-views": views, "cache-dir": ""}
    workspace = build_workspace(RunConfig.from_mapping(mapping))
    start, images = workspace.weights.vector.clone(), workspace.client_data(1)
    arguments: dict[str, Any] = {"partition_id": 1, "server_round": 1, "lr": 0.1}
    plain = train_client(workspace, start, **arguments)
    update = plain.update.clone()
    measured = train_client(workspace, start, **arguments, algorithm=QFFL())
    assert torch.equal(update, measured.update) and plain.start_loss == 0
    workspace.weights.load(start)
    if not views:
        assert measured.start_loss == evaluate(workspace, images)[0]
    assert 0 < measured.start_loss < 10 and measured.sent == {}
