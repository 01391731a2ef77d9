"""Server optimisers against closed numbers, and against Flower's where Flower follows the paper."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from benchmarks.harness.quadratics import Server, clients, optimum, schedule
from fedta_app.algorithms.base import Algorithm, Reply, Total, Vectors
from fedta_app.algorithms.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi

SIZE = 4
ADAPTIVE = {"fedadagrad": FedAdagrad, "fedadam": FedAdam, "fedyogi": FedYogi}


def updates(rounds: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        0.1 * torch.randn(SIZE, generator=generator, dtype=torch.float64) for _ in range(rounds)
    ]


def moves(algorithm: Algorithm, those: list[Tensor]) -> list[Tensor]:
    """Return how the weights move in each round whose mean update is given."""
    state: Vectors = {
        name: vector.double() for name, vector in algorithm.init(those[0].numel()).items()
    }
    found = []
    for number, update in enumerate(those, start=1):
        move, state = algorithm.step(state, Total(update.clone(), 1), number)
        found.append(move.scale * move.direction)
    return found


def test_momentum_by_hand() -> None:
    algorithm = FedAvgM(server_momentum=0.5, server_lr=2.0)
    found = moves(algorithm, [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 4.0])])
    assert found[0].tolist() == [2.0, 0.0]
    assert found[1].tolist() == [3.0, 8.0]  # 2 * (0.5 * (1, 0) + (1, 4))


def test_momentum_is_that_of_torch_sgd() -> None:
    those = updates(6)
    weight = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=0.3, momentum=0.8)
    total = torch.zeros(SIZE, dtype=torch.float64)
    found = moves(FedAvgM(server_momentum=0.8, server_lr=0.3), those)
    for update, moved in zip(those, found, strict=True):
        weight.grad = -update
        sgd.step()
        total += moved
        torch.testing.assert_close(total, weight.detach())


def test_without_momentum_it_is_fedavg_bit_for_bit() -> None:
    start = torch.zeros(SIZE, dtype=torch.float64)
    ours = Server(FedAvgM(server_momentum=0.0), clients(4, SIZE), start)
    plain = Server(Algorithm(), clients(4, SIZE), start)
    for chosen in schedule(5, 4, 2):
        ours.run_round(chosen)
        plain.run_round(chosen)
        assert torch.equal(ours.weights, plain.weights)


def adagrad(v: np.ndarray, d: np.ndarray) -> np.ndarray:
    return v + d**2


def adam(v: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 0.9 * v + 0.1 * d**2


def yogi(v: np.ndarray, d: np.ndarray) -> np.ndarray:
    return v - 0.1 * d**2 * np.sign(v - d**2)


@pytest.mark.parametrize(
    ("name", "second"), [("fedadagrad", adagrad), ("fedadam", adam), ("fedyogi", yogi)]
)
def test_adaptive_steps_are_those_of_the_papers_algorithm_2(
    name: str, second: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    own = {"server_beta2": 0.9} if name != "fedadagrad" else {}
    algorithm = ADAPTIVE[name](server_lr=0.1, server_beta1=0.7, server_tau=0.01, **own)
    m, v = np.zeros(SIZE), np.full(SIZE, 0.01**2)
    for update, moved in zip(updates(), moves(algorithm, updates()), strict=True):
        d = update.numpy()
        m = 0.7 * m + 0.3 * d
        v = second(v, d)
        np.testing.assert_allclose(moved.numpy(), 0.1 * m / (np.sqrt(v) + 0.01), rtol=1e-6)


def test_adam_without_memory_is_a_step_of_the_sign() -> None:
    algorithm = FedAdam(server_lr=0.1, server_beta1=0.0, server_beta2=0.0, server_tau=1e-9)
    (moved,) = moves(algorithm, [torch.tensor([2.0, -0.5, 0.0]).double()])
    torch.testing.assert_close(moved, torch.tensor([0.1, -0.1, 0.0]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_large_tau_makes_them_plain_sgd(name: str) -> None:
    """v starts at tau^2 and stays there, so the divisor is 2 tau."""
    own = {"server_beta2": 1 - 1e-12} if name != "fedadagrad" else {}
    algorithm = ADAPTIVE[name](server_lr=1e6, server_beta1=0.0, server_tau=1e6, **own)
    for update, moved in zip(updates(), moves(algorithm, updates()), strict=True):
        torch.testing.assert_close(moved, 0.5 * update, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_entry_that_never_changes_never_moves(name: str) -> None:
    those = updates()
    for update in those:
        update[2] = 0.0
    assert all(moved[2] == 0 for moved in moves(ADAPTIVE[name](), those))


@pytest.mark.parametrize("algorithm", [FedAvgM(), FedAdagrad(), FedAdam(), FedYogi()])
def test_an_entry_that_nobody_trains_in_a_round_keeps_its_state_and_does_not_move(
    algorithm: Algorithm,
) -> None:
    state: Vectors = algorithm.init(3)
    everybody = torch.ones(3, dtype=torch.bool)
    some = torch.tensor([True, False, True])
    for server_round, mask in enumerate([everybody, everybody, some], start=1):
        total = algorithm.accumulator()
        update = torch.tensor([0.1, 0.2, 0.3]) * mask
        total.add(Reply(update, 10, 4, 0.1, trained=mask))
        before = {name: vector.clone() for name, vector in state.items()}
        move, state = algorithm.step(state, total.result(), server_round)
    assert move.direction[1] == 0
    assert move.direction[0] != 0
    for name, vector in state.items():
        assert vector[1] == before[name][1], name
        assert vector[0] != before[name][0], name


@pytest.mark.parametrize("algorithm", [FedAvgM(server_lr=0.3), FedAdam(server_lr=0.03)])
def test_they_come_near_the_optimum(algorithm: Algorithm) -> None:
    those = clients(4, SIZE)
    for client in those:
        client.num_examples = 10
    found = Server(algorithm, those, torch.zeros(SIZE, dtype=torch.float64), steps=1)
    for _ in range(600):
        found.run_round(range(4))
    assert float((found.weights - optimum(those)).norm()) < 0.05


# --- Flower's own


@pytest.fixture
def identity() -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def flower_moves(theirs: flower.FedAvg, those: list[Tensor]) -> list[np.ndarray]:
    """Return the moves of a Flower strategy whose clients send `weights + update`."""
    weights, found = np.zeros(SIZE), []
    for number, update in enumerate(those, start=1):
        theirs.current_arrays = {"w": weights.copy()}  # type: ignore[attr-defined]
        arrays = ArrayRecord(OrderedDict(w=Array(weights + update.numpy())))
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        question = Message(RecordDict(), 2, "train")
        question.metadata.__dict__["_message_id"] = str(number)
        aggregated, _ = theirs.aggregate_train(number, [Message(content, reply_to=question)])
        assert aggregated is not None
        new = aggregated["w"].numpy()
        found.append(new - weights)
        weights = new
    return found


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            FedAdagrad(server_lr=0.1, server_beta1=0.0, server_tau=0.01),
            flower.FedAdagrad(eta=0.1, tau=0.01),
        ),
        (
            FedYogi(server_lr=0.1, server_beta1=0.9, server_beta2=0.99, server_tau=0.01),
            flower.FedYogi(eta=0.1, beta_1=0.9, beta_2=0.99, tau=0.01),
        ),
    ],
)
def test_adagrad_and_yogi_are_flowers_from_the_same_start(
    ours: Algorithm, theirs: flower.FedAvg
) -> None:
    """Flower starts v at 0, the paper at tau^2: ours is put to 0 for the comparison."""
    state: Vectors = {name: torch.zeros(SIZE).double() for name in ours.init(SIZE)}
    expected = flower_moves(theirs, updates())
    for number, (update, other) in enumerate(zip(updates(), expected, strict=True), start=1):
        move, state = ours.step(state, Total(update.clone(), 1), number)
        moved = (move.scale * move.direction).numpy()
        np.testing.assert_allclose(moved, other, rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("identity")
def test_flowers_adam_is_another_algorithm() -> None:
    """It corrects the bias, with exponent round + 1; the paper does not. Ours is the paper's."""
    ours = FedAdam(server_lr=0.1, server_beta1=0.9, server_beta2=0.99, server_tau=0.01)
    theirs = flower.FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=0.01)
    state: Vectors = {name: torch.zeros(SIZE).double() for name in ours.init(SIZE)}
    ratios = []
    for number, (update, other) in enumerate(
        zip(updates(), flower_moves(theirs, updates()), strict=True), start=1
    ):
        move, state = ours.step(state, Total(update.clone(), 1), number)
        ratio = (1 - 0.99 ** (number + 1)) ** 0.5 / (1 - 0.9 ** (number + 1))
        moved = ratio * (move.scale * move.direction).numpy()
        np.testing.assert_allclose(other, moved, rtol=1e-6, atol=1e-12)
        ratios.append(round(ratio, 2))
    assert ratios[:3] == [0.74, 0.64, 0.58]  # no round is the paper's, nor Adam's first, 1.0
