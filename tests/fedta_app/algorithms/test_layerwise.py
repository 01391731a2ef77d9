"""LARS and LAMB on the server beside timm's, and which entries they take for one tensor."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm.optim
import torch
from torch import Tensor

import client_app.app
import server_app.phases
from benchmarks.harness.quadratics import Client, Server, clients, schedule
from engine.inprocess import run_in_process
from fedta_app.algorithms.base import Algorithm, Move, Reply, Total, Vectors
from fedta_app.algorithms.fedopt import FedAvgM
from fedta_app.algorithms.layerwise import FedLamb, FedLars
from fedta_app.config import RunConfig
from fedta_app.training.workspace import build_workspace
from fedta_app.vectors.layout import Segment
from server_app.app import app as server

SEGMENTS = (Segment(6, dims=2), Segment(3, dims=1), Segment(4, dims=4))
SIZE = 13
START = torch.linspace(-1, 1.3, SIZE, dtype=torch.float64)


def alone(algorithm: Algorithm) -> Server:
    """Return a server whose only client takes one step of rate 1: its update is -gradient."""
    found = Server(algorithm, clients(1, SIZE), START, steps=1, lr=1.0, segments=SEGMENTS)
    if isinstance(algorithm, FedLamb):
        found.state = {name: v.double() for name, v in algorithm.init(SIZE).items()}
    return found


def timms(name: str, client: Client, rounds: int, **values: Any) -> list[Tensor]:
    """Return the weights after each step of timm's optimizer on the client's gradient."""
    sizes = [segment.size for segment in SEGMENTS]
    parts = [torch.nn.Parameter(part.clone()) for part in START.split(sizes)]
    groups = [
        {"params": [part], "always_adapt": segment.dims > 1}
        for part, segment in zip(parts, SEGMENTS, strict=True)
    ]
    optimizer = getattr(timm.optim, name)(groups, weight_decay=0.0, **values)
    found = []
    for _ in range(rounds):
        gradient = client.gradient(torch.cat([part.detach() for part in parts]))
        for part, own in zip(parts, gradient.split(sizes), strict=True):
            part.grad = own
        optimizer.step()
        found.append(torch.cat([part.detach() for part in parts]))
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_is_timms_on_one_client_of_one_step(momentum: float) -> None:
    found = alone(FedLars(server_trust=0.02, server_momentum=momentum, server_lr=0.5))
    values = {"lr": 0.5, "momentum": momentum, "trust_coeff": 0.02}
    for expected in timms("Lars", found.clients[0], 5, **values):
        found.run_round([0])
        torch.testing.assert_close(found.weights, expected, rtol=1e-6, atol=1e-9)


def test_lamb_is_timms_on_one_client_of_one_step() -> None:
    found = alone(FedLamb(server_beta1=0.8, server_beta2=0.95, server_lr=0.03))
    values = {"lr": 0.03, "betas": (0.8, 0.95), "max_grad_norm": None}
    for expected in timms("Lamb", found.clients[0], 5, **values):
        found.run_round([0])
        torch.testing.assert_close(found.weights, expected, rtol=1e-6, atol=1e-9)


def test_a_tensor_moves_by_a_share_of_its_length_whatever_the_update_is() -> None:
    for algorithm in (FedLars(server_momentum=0.0, server_trust=0.001), FedLamb(server_lr=0.001)):
        found = alone(algorithm)
        found.clients[0].curvature *= 1000
        found.run_round([0])
        moved, before = found.weights - START, START
        for part, own in ((slice(0, 6), before[:6]), (slice(9, 13), before[9:])):
            assert float(moved[part].norm()) == pytest.approx(0.001 * float(own.norm()), rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_without_a_trust_coefficient_lars_is_momentum_bit_for_bit(momentum: float) -> None:
    ours = Server(FedLars(server_trust=0.0, server_momentum=momentum), clients(4, SIZE), START)
    theirs = Server(FedAvgM(server_momentum=momentum), clients(4, SIZE), START)
    for chosen in schedule(5, 4, 2):
        ours.run_round(chosen)
        theirs.run_round(chosen)
        assert torch.equal(ours.weights, theirs.weights)


@pytest.mark.parametrize("algorithm", [FedLars(), FedLamb()])
def test_weights_or_updates_of_zero_are_no_division_by_zero(algorithm: Algorithm) -> None:
    found = alone(algorithm)
    found.weights = START.clone()
    found.weights[:6] = 0.0  # a tensor that starts at zero
    found.clients[0].curvature[9:] = 0.0  # and one whose update is zero
    found.run_round([0])
    assert found.weights.isfinite().all() and found.weights[:6].abs().min() > 0
    assert torch.equal(found.weights[9:], START[9:])


@pytest.mark.parametrize("algorithm", [FedLars(), FedLamb()])
def test_an_entry_that_nobody_trains_in_a_round_keeps_its_state_and_counts_in_no_length(
    algorithm: Algorithm,
) -> None:
    state: Vectors = algorithm.init(3, holders=torch.ones(3))
    start, segments = torch.tensor([3.0, 4.0, 1.0]), (Segment(3, dims=2),)
    everybody, some = torch.ones(3).bool(), torch.tensor([True, False, True])
    for server_round, mask in enumerate([everybody, everybody, some], start=1):
        total = algorithm.accumulator()
        total.add(Reply(torch.tensor([0.1, 0.2, 0.3]) * mask, 10, 4, 0.1, trained=mask))
        before = copy.deepcopy(state)
        combined = total.result()._replace(start=start, segments=segments)
        move, state = algorithm.step(state, combined, server_round)
    assert move.direction[1] == 0 and move.direction[0] != 0
    assert all(state[name][1] == before[name][1] != state[name][0] for name in state)
    if isinstance(algorithm, FedLamb):
        assert float(move.direction.norm()) == pytest.approx(float(start.norm()), rel=1e-6)


def test_an_entry_that_is_trained_late_takes_the_first_step_of_lamb() -> None:
    """Its moments begin at 0 then, so their correction is that of a first step, not of a tenth."""
    algorithm = FedLamb(server_lr=1.0)
    state: Vectors = algorithm.init(2, holders=torch.tensor([5.0, 1.0]))
    for server_round in range(1, 11):
        mask = torch.tensor([True, server_round == 10])
        total = algorithm.accumulator()
        total.add(Reply(torch.full((2,), 0.1) * mask, 10, 4, 0.1, trained=mask))
        combined = total.result()._replace(start=torch.ones(2), segments=(Segment(2, dims=2),))
        move, state = algorithm.step(state, combined, server_round)
    torch.testing.assert_close(move.direction, torch.ones(2), rtol=1e-4, atol=0)


@dataclass(frozen=True)
class _Spy(FedLars):
    """LARS that notes what it is told."""

    name: ClassVar[str] = ""
    told: ClassVar[list[Total]] = []

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        self.told.append(total._replace(start=total.start.clone()))  # type: ignore[union-attr]
        return super().step(state, total, server_round)


def test_in_a_run_the_segments_are_the_tensors_of_the_model_under_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (client_app.app, server_app.phases):
        monkeypatch.setattr(module, "make_algorithm", lambda name, options: _Spy())
    _Spy.told.clear()
    values = {
        "name": "test", "num-clients": 4, "fraction-train": 0.5, "num-server-rounds": 2,
        "local-steps": 1, "threads": 1, "eval-every": 2, "eval-size": 20, "engine": "in-process",
        "partition": "iid", "results-dir": str(tmp_path), "measure-test": "never",
        "head": "ridge", "mask-rule": "random", "sparsity": 0.7,
    }  # fmt: skip
    run_in_process(server, client_app.app.app, values, 4)
    first, second = _Spy.told
    assert first.start is not None and second.start is not None
    assert sum(segment.size for segment in first.segments) == first.start.numel()
    assert not torch.equal(first.start, second.start)
    shapes = build_workspace(RunConfig.from_mapping(values)).weights.layout.shapes
    assert [segment.dims for segment in first.segments] == [len(shape) for shape in shapes]
    shares = [s.size / math.prod(shape) for s, shape in zip(first.segments, shapes, strict=True)]
    large = [share for share, shape in zip(shares, shapes, strict=True) if math.prod(shape) > 500]
    assert large and all(0.2 < share < 0.4 for share in large)  # what 0.7 of them frozen leave
