"""Ditto on quadratics and on the trainer: what a client keeps for itself, and what it shares."""

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.harness.quadratics import Server, clients, schedule
from fedta_app.algorithms import PERSONAL, Algorithm
from fedta_app.algorithms.ditto import Ditto
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.seeding import torch_generator
from fedta_app.training.client import train_client
from fedta_app.training.steps import mini_batches
from fedta_app.training.workspace import build_workspace
from fedta_app.vectors import FlatMask
from tests.runs import summary_of

N, SIZE = 5, 6


def server(algorithm: Algorithm, **values: Any) -> Server:
    start = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    return Server(algorithm, clients(N, SIZE), start, **values)


def test_the_updates_are_those_of_algorithm_1_written_out() -> None:
    found = server(Ditto(pull=0.7), lr=0.02)
    x = found.weights.clone()
    own: dict[int, Tensor] = {}
    for chosen in schedule(8, N, 3):
        ends, sizes = [], []
        for k in chosen:
            w, v = x.clone(), own.get(k, x).clone()
            for _ in range(4):
                w = w - 0.02 * found.clients[k].gradient(w)
                v = v - 0.02 * (found.clients[k].gradient(v) + 0.7 * (v - x))
            own[k] = v
            ends.append(w)
            sizes.append(found.clients[k].num_examples)
        x = sum(n * w for n, w in zip(sizes, ends, strict=True)) / sum(sizes)
        found.run_round(chosen)
        torch.testing.assert_close(found.weights, x, rtol=1e-12, atol=1e-12)
    for k, v in own.items():
        torch.testing.assert_close(found.clients[k].memory[PERSONAL], v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pull", [0.0, 0.1, 5.0])
def test_the_global_weights_are_fedavgs_on_bits(pull: float) -> None:
    ditto, plain = server(Ditto(pull=pull), momentum=0.9), server(Algorithm(), momentum=0.9)
    for chosen in schedule(6, N, 3):
        ditto.run_round(chosen)
        plain.run_round(chosen)
        assert torch.equal(ditto.weights, plain.weights)


def test_a_clients_own_weights_end_at_the_minimum_of_its_penalised_loss() -> None:
    """Where the global weights rest, v_k solves F_k'(v) + pull (v - x) = 0: a known point."""
    found = server(Ditto(pull=0.5))
    start = found.weights.clone()
    for _ in range(400):
        found.weights = start.clone()
        found.run_round([2])
    client = found.clients[2]
    best = (client.curvature * client.optimum + 0.5 * start) / (client.curvature + 0.5)
    torch.testing.assert_close(client.memory[PERSONAL], best)


def test_a_huge_pull_makes_a_clients_own_weights_the_global_ones() -> None:
    found = server(Ditto(pull=1e6), lr=1e-6)
    for _ in range(3):
        before = found.weights.clone()
        found.run_round(range(N))
        for client in found.clients:
            torch.testing.assert_close(client.memory[PERSONAL], before, rtol=0, atol=1e-4)


def test_without_a_pull_each_client_trains_alone() -> None:
    found = server(Ditto(pull=0.0), momentum=0.5)
    alone = found.weights.clone()
    for _ in range(5):
        found.run_round([0, 1, 4])
        buffer = torch.zeros(SIZE, dtype=torch.float64)
        for _ in range(4):
            buffer = 0.5 * buffer + found.clients[1].gradient(alone)
            alone = alone - 0.05 * buffer
    torch.testing.assert_close(found.clients[1].memory[PERSONAL], alone, rtol=1e-13, atol=1e-13)


def test_a_client_that_is_not_sampled_keeps_its_bits_and_one_that_lost_them_begins_anew() -> None:
    found = server(Ditto(pull=0.1))
    found.run_round([0, 1])
    kept = found.clients[0].memory[PERSONAL].clone()
    found.run_round([1, 2])
    assert torch.equal(found.clients[0].memory[PERSONAL], kept)
    found.clients[1].memory, at = {}, found.weights.clone()
    fresh = server(Ditto(pull=0.1))
    fresh.weights = at
    found.run_round([1])
    fresh.run_round([1])
    assert torch.equal(found.clients[1].memory[PERSONAL], fresh.clients[1].memory[PERSONAL])


def test_own_masks_hold_what_their_client_trains() -> None:
    found = server(Ditto(pull=0.1))
    found.clients[0].mask = torch.tensor([True, False, True, True, False, False])
    found.run_round([0])
    assert found.clients[0].memory[PERSONAL].shape == (3,)


@pytest.mark.parametrize(("momentum", "limit"), [(0.0, 100), (0.9, 190)])
def test_a_pull_by_which_steps_run_away_is_refused(momentum: float, limit: float) -> None:
    """The limit is that of gradient descent with momentum on the penalty alone."""
    values = {"strategy": "ditto", "lr": 0.02, "momentum": momentum}
    with pytest.raises(ConfigError, match=rf"pull is below 2 \(1 \+ momentum\) / lr = {limit:g}"):
        RunConfig.from_mapping({**values, "pull": limit})
    RunConfig.from_mapping({**values, "pull": 0.99 * limit})
    ends = []
    for pull in (0.99 * limit, 1.01 * limit):
        v, buffer = 1.0, 0.0
        for _ in range(3000):
            buffer = momentum * buffer + pull * v
            v -= 0.02 * buffer
        ends.append(abs(v))
    assert ends[0] < 1e-6 and ends[1] > 1e6


def test_the_rate_that_is_used_counts() -> None:
    values = {"strategy": "ditto", "lr": 0.005, "batch-size": 32, "lr-batch-size": 8}
    said = r"lr = 0.005, which the rule of lr-batch-size makes 0.02: .* / lr = 100 there"
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_mapping({**values, "momentum": 0.0, "pull": 100})
    RunConfig.from_mapping({**values, "momentum": 0.0, "pull": 99})


def test_a_head_of_the_global_model_alone_is_refused() -> None:
    values = {"strategy": "ditto", "head": "ridge", "head-refresh": 4}
    with pytest.raises(
        ConfigError, match="head-refresh = 4 is not allowed with strategy = 'ditto'"
    ):
        RunConfig.from_mapping(values)
    RunConfig.from_mapping({**values, "engine": "centralized"})


# --- on the real trainer

RUN = {
    "name": "test", "partition": "classes", "num-clients": 10, "num-classes-per-client": 2,
    "fraction-train": 0.3, "num-server-rounds": 3, "local-steps": 3, "batch-size": 8, "lr": 0.02,
    "momentum": 0.5, "weight-decay": 0.01, "eval-every": 3, "eval-size": 60, "threads": 1,
    "engine": "in-process",
}  # fmt: skip
MASKED = {"head": "ridge", "mask-rule": "random", "sparsity": 0.7}


@pytest.mark.parametrize("masked", [False, True])
def test_the_trainer_does_what_a_plain_loop_does(tmp_path: Path, masked: bool) -> None:
    """With the penalty in the loss, torch.optim.SGD, and batches by a key of their own."""
    config = RunConfig.from_mapping({**RUN, "augment": False, "results-dir": str(tmp_path)})
    space, plain = build_workspace(config), build_workspace(config)
    x, size = space.weights.vector.clone(), space.weights.vector.numel()
    draw = torch.Generator().manual_seed(1)
    own = x + 0.01 * torch.randn(size, generator=draw)
    down = FlatMask(torch.rand(size, generator=draw) < 0.3) if masked else None
    if down is not None:  # what is frozen is the same in both models
        own = torch.where(down.mask, own, x)
    images = plain.client_data(2)
    plain.weights.load(own)
    centres = plain.weights.views(x)
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.05, momentum=0.5, weight_decay=0.01)
    order = torch_generator(0, "batches", 7, 2, "personal")
    for positions in mini_batches(len(images), 8, 3, order):
        optimizer.zero_grad()
        inputs = plain.inputs(images.images[positions])
        loss = cross_entropy(plain.model(inputs), images.labels[positions])
        for name, value in plain.model.named_parameters():
            loss = loss + 0.35 * ((value - centres[name]) ** 2).sum()
        loss.backward()
        optimizer.step()
        if down is not None:
            kept = torch.where(down.mask, plain.weights.vector, x)
            plain.weights.load(kept)

    def packed(vector: Tensor) -> Tensor:
        return vector if down is None else down.gather(vector)

    common: dict[str, Any] = {"partition_id": 2, "server_round": 7, "lr": 0.05, "down": down}
    memory = {PERSONAL: packed(own)}
    fedavg = train_client(space, packed(x), **common)
    expected, loss_alone = fedavg.update.clone(), fedavg.loss
    ditto = train_client(space, packed(x), **common, algorithm=Ditto(pull=0.7), memory=memory)
    assert torch.equal(ditto.update, expected) and ditto.loss == loss_alone
    found = ditto.memory[PERSONAL]
    torch.testing.assert_close(found, packed(plain.weights.vector), rtol=1e-4, atol=2e-6)
    assert not torch.equal(found, packed(own))


def run(folder: Path, **values: Any) -> dict[str, Any]:
    return summary_of(folder, {**RUN, **values})


@pytest.mark.parametrize(("setting", "pull"), [({}, 0.0), ({}, 100.0), (MASKED, 0.1)])
def test_a_run_ends_with_fedavgs_weights_at_any_pull(
    tmp_path: Path, setting: dict[str, Any], pull: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda figure, stream, **_: None)
    plain = run(tmp_path / "plain", **setting)
    ditto = run(tmp_path / "ditto", strategy="ditto", pull=pull, **setting)
    assert ditto["final-weights-sha256"] == plain["final-weights-sha256"]
    assert ditto["bytes-up"] == plain["bytes-up"]
    assert ditto["bytes-down"] == plain["bytes-down"]
    blobs = list((tmp_path / "ditto/test/seed0/clients").glob("*/*"))
    sizes = {load_file(blob)[PERSONAL].numel() for blob in blobs}
    size = build_workspace(RunConfig.from_mapping({**RUN, **setting})).weights.vector.numel()
    assert sizes == {ditto["mask"]["trained"] if setting else size}
