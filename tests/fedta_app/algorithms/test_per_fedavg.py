"""Per-FedAvg on quadratics and on the trainer: gradients one step ahead of the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.harness.quadratics import Server, clients, schedule
from fedta_app.algorithms import Algorithm
from fedta_app.algorithms.per_fedavg import PerFedAvg
from fedta_app.config import RunConfig
from fedta_app.seeding import torch_generator
from fedta_app.training.ahead import adapt
from fedta_app.training.client import train_client
from fedta_app.training.steps import mini_batches
from fedta_app.training.workspace import Workspace, build_workspace
from fedta_app.vectors import FlatMask

N, SIZE = 5, 6


def server(algorithm: Algorithm, **values: Any) -> Server:
    start = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    return Server(algorithm, clients(N, SIZE), start, **values)


def test_the_updates_are_those_of_algorithm_1_written_out() -> None:
    found = server(PerFedAvg(personal_lr=0.3), lr=0.02)
    x = found.weights.clone()
    for chosen in schedule(8, N, 3):
        ends, sizes = [], []
        for k in chosen:
            client, w = found.clients[k], x.clone()
            for _ in range(4):
                ahead = w - 0.3 * client.gradient(w)
                w = w - 0.02 * client.gradient(ahead)
            ends.append(w)
            sizes.append(client.num_examples)
        x = sum(n * w for n, w in zip(sizes, ends, strict=True)) / sum(sizes)
        found.run_round(chosen)
        torch.testing.assert_close(found.weights, x, rtol=1e-12, atol=1e-12)


def test_it_ends_where_the_gradients_one_step_ahead_cancel() -> None:
    """On a quadratic they are a (1 - alpha a) (w - o): those of another, known quadratic."""
    found = server(PerFedAvg(personal_lr=0.3), steps=1, lr=0.3)
    for client in found.clients:
        client.num_examples = 1
    for _ in range(600):
        found.run_round(range(N))
    curvatures = torch.stack([c.curvature * (1 - 0.3 * c.curvature) for c in found.clients])
    optima = torch.stack([c.optimum for c in found.clients])
    best = (curvatures * optima).sum(0) / curvatures.sum(0)
    torch.testing.assert_close(found.weights, best)


def test_a_rate_of_zero_is_fedavg_bit_for_bit() -> None:
    ours, plain = server(PerFedAvg(personal_lr=0.0)), server(Algorithm())
    for chosen in schedule(4, N, 3):
        ours.run_round(chosen)
        plain.run_round(chosen)
        assert torch.equal(ours.weights, plain.weights)


# --- on the real trainer

RUN = {
    "name": "test", "partition": "classes", "num-clients": 10, "num-classes-per-client": 2,
    "batch-size": 8, "local-steps": 3, "momentum": 0.5, "weight-decay": 0.01, "augment": False,
    "eval-size": 60, "threads": 1, "engine": "in-process",
}  # fmt: skip


def gradient(space: Workspace, at: Tensor, positions: Tensor) -> Tensor:
    """Return the gradient (N,) of the loss over a client's images at weights (N,)."""
    images = space.client_data(2)
    named = {name: view.clone().requires_grad_() for name, view in space.weights.views(at).items()}
    inputs, labels = space.inputs(images.images[positions]), images.labels[positions]
    logits = functional_call(space.model, named, (inputs,))
    found = torch.autograd.grad(cross_entropy(logits, labels), list(named.values()))
    return torch.cat([part.reshape(-1) for part in found])


def workspace(folder: Path, **values: Any) -> Workspace:
    return build_workspace(RunConfig.from_mapping({**RUN, "results-dir": str(folder), **values}))


def mask_of(space: Workspace, masked: bool) -> FlatMask | None:
    draw = torch.Generator().manual_seed(1)
    random = torch.rand(space.weights.vector.numel(), generator=draw)
    return FlatMask(random < 0.3) if masked else None


def packed(vector: Tensor, down: FlatMask | None) -> Tensor:
    return vector if down is None else down.gather(vector)


@pytest.mark.parametrize("masked", [False, True])
def test_the_trainer_does_what_a_plain_loop_does(tmp_path: Path, masked: bool) -> None:
    """Gradients by `torch.func`, and steps of SGD written out; frozen entries keep their bits."""
    space, plain = workspace(tmp_path), workspace(tmp_path)
    down = mask_of(space, masked)
    moving = torch.ones_like(space.weights.vector) if down is None else down.mask.float()
    x = space.weights.vector.clone()
    w, buffer = x.clone(), torch.zeros_like(x)
    size = len(plain.client_data(2))
    orders = [torch_generator(0, "batches", 7, 2, *more) for more in ((), ("ahead",))]
    for outer, inner in zip(*(mini_batches(size, 8, 3, order) for order in orders), strict=True):
        ahead = w - 0.1 * moving * gradient(plain, w, inner)
        buffer = 0.5 * buffer + gradient(plain, ahead, outer) + 0.01 * w
        w = w - 0.05 * moving * buffer
    result = train_client(
        space, packed(x, down), partition_id=2, server_round=7, lr=0.05, down=down,
        algorithm=PerFedAvg(personal_lr=0.1),
    )  # fmt: skip
    torch.testing.assert_close(result.update, packed(w - x, down), rtol=1e-3, atol=2e-6)
    frozen = moving == 0
    assert torch.equal(space.weights.vector[frozen], x[frozen])


@pytest.mark.parametrize("masked", [False, True])
def test_a_clients_model_is_one_step_of_its_whole_gradient_away(
    tmp_path: Path, masked: bool
) -> None:
    """Whatever the batches it is computed in, and whatever gradients training left behind."""
    space, plain = workspace(tmp_path, **{"batch-size": 7}), workspace(tmp_path)
    down, x = mask_of(space, masked), space.weights.vector.clone()
    everything = torch.arange(len(plain.client_data(2)))
    step = 0.1 * gradient(plain, x, everything)
    if down is not None:
        step *= down.mask
    for parameter in space.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    adapt(space, 2, 0.1, down)
    torch.testing.assert_close(space.weights.vector, x - step, rtol=1e-4, atol=1e-7)
    if down is not None:
        assert torch.equal(space.weights.vector[~down.mask], x[~down.mask])
    assert all(parameter.grad is None for parameter in space.model.parameters())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(space.weights.vector, x, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("masked", [False, True])
def test_a_gradient_that_overflows_in_fp16_skips_its_step(
    tmp_path: Path, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in plain training: the loss is finite, and later steps have a smaller scale."""
    monkeypatch.setattr("fedta_app.training.steps.FP16_SCALE", 2.0**22)
    found = {}
    for steps in (1, 12):
        space = workspace(tmp_path, **{"precision": "fp16", "local-steps": steps})
        down, x = mask_of(space, masked), space.weights.vector.clone()
        found[steps] = train_client(
            space, packed(x, down), partition_id=2, server_round=7, lr=0.05, down=down,
            algorithm=PerFedAvg(personal_lr=0.1),
        )  # fmt: skip
    assert not found[1].update.any() and found[12].update.any()
    assert found[12].update.isfinite().all()
    assert 0 < found[1].loss < 10 and 0 < found[12].loss < 10


@pytest.mark.parametrize("masked", [False, True])
def test_a_clients_model_has_its_step_where_fp16_overflows_at_first(
    tmp_path: Path, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = {"precision": "fp16", "batch-size": 100}
    plain, scaled = workspace(tmp_path, **half), workspace(tmp_path, **half)
    start, down = plain.weights.vector.clone(), mask_of(plain, masked)
    adapt(plain, 2, 0.1, down)
    monkeypatch.setattr("fedta_app.training.ahead.FP16_SCALE", 2.0**22)
    adapt(scaled, 2, 0.1, down)
    step = plain.weights.vector - start
    torch.testing.assert_close(scaled.weights.vector - start, step, rtol=1e-2, atol=1e-5)
    assert step.any()
    monkeypatch.setattr("fedta_app.training.ahead.FP16_SCALE", 4.0)
    scaled.weights.load(start)
    scaled.model.get_parameter(scaled.weights.names[-1]).register_hook(lambda g: g + torch.inf)
    adapt(scaled, 2, 0.1, None)
    assert torch.equal(scaled.weights.vector, start)
