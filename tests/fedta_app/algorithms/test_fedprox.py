"""FedProx against its closed forms, and its correction against autograd on the real trainer."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness.quadratics import Server, clients, schedule
from fedta_app.algorithms.base import Algorithm, Correction, LocalRule
from fedta_app.algorithms.fedprox import FedProx
from fedta_app.config import RunConfig
from fedta_app.training.steps import GradientCorrection, make_optimizer, train_steps
from fedta_app.training.workspace import build_workspace
from fedta_app.vectors import FlatMask

SIZE = 5


def server(algorithm: Algorithm, steps: int = 4) -> Server:
    start = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    return Server(algorithm, clients(4, SIZE), start, steps=steps)


def test_without_a_pull_it_is_fedavg_bit_for_bit() -> None:
    assert FedProx(pull=0.0).local(torch.zeros(3), {}, {}).correction is None
    prox, plain = server(FedProx(pull=0.0)), server(Algorithm())
    for chosen in schedule(5, 4, 2):
        prox.run_round(chosen)
        plain.run_round(chosen)
        assert torch.equal(prox.weights, plain.weights)


def test_one_step_is_fedavg_whatever_the_pull() -> None:
    """The first step starts at the centre, where the penalty has no gradient."""
    prox, plain = server(FedProx(pull=10.0), steps=1), server(Algorithm(), steps=1)
    prox.run_round([0, 1, 2])
    plain.run_round([0, 1, 2])
    assert torch.equal(prox.weights, plain.weights)


@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_a_client_that_trains_long_ends_at_the_minimum_of_its_penalised_loss(mu: float) -> None:
    """There the gradient of its loss is -mu (w - w_0): the update is the gradient over -mu."""
    found = server(FedProx(pull=mu), steps=2000)
    start = found.weights.clone()
    found.run_round([1])
    client = found.clients[1]
    expected = (client.curvature * client.optimum + mu * start) / (client.curvature + mu)
    torch.testing.assert_close(found.weights, expected)
    torch.testing.assert_close(found.weights - start, -client.gradient(found.weights) / mu)


def test_clients_are_weighed_by_examples() -> None:
    found = server(FedProx(pull=1.0), steps=1)
    start, those = found.weights.clone(), found.clients
    found.run_round([0, 1])
    gradients = [client.gradient(start) * client.num_examples for client in those[:2]]
    examples = sum(client.num_examples for client in those[:2])
    torch.testing.assert_close(found.weights, start - found.lr * sum(gradients) / examples)


# --- the correction on the real trainer

CONFIG = {
    "partition": "iid", "num-clients": 10, "local-steps": 3, "batch-size": 8, "lr": 0.05,
    "momentum": 0.9, "weight-decay": 0.01, "augment": False, "engine": "in-process",
    "weights": "random", "threads": 1,
}  # fmt: skip


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_the_correction_equals_the_gradient_of_a_penalty_in_the_loss(
    clip_norm: float, masked: bool, tmp_path: Path
) -> None:
    """pull and shift against autograd of pull / 2 |w - z|^2 + <b, w> in torch.optim.SGD."""
    config = {**CONFIG, "clip-norm": clip_norm, "results-dir": str(tmp_path)}
    workspace = build_workspace(RunConfig.from_mapping(config))
    weights = workspace.weights
    generator = torch.Generator().manual_seed(1)
    size = weights.vector.numel()
    mask = FlatMask(torch.rand(size, generator=generator) < 0.3) if masked else None
    start = weights.vector.clone()
    packed = start if mask is None else mask.gather(start)
    centre = packed + 0.01 * torch.randn(packed.numel(), generator=generator)
    shift = 0.01 * torch.randn(packed.numel(), generator=generator)

    rule = LocalRule(correction=Correction(0.7, centre, shift))
    images = workspace.client_data(0)
    optimizer = make_optimizer(
        workspace.config, workspace.model, None if mask is None else weights.views(mask.mask)
    )
    train_steps(workspace, optimizer, images, lr=0.05, key=(1, 0), rule=rule, trained=mask)
    ours = weights.vector.clone()

    # The same steps with the penalty written into the loss, and a mask on what moves.
    weights.load(start)
    trained = torch.ones(size, dtype=torch.bool) if mask is None else mask.mask
    whole_centre, whole_shift = start.clone(), torch.zeros(size)
    whole_centre[trained], whole_shift[trained] = centre, shift
    centres, shifts, masks = (
        weights.views(vector) for vector in (whole_centre, whole_shift, trained)
    )
    named = dict(workspace.model.named_parameters())
    buffers = {name: torch.zeros_like(value) for name, value in named.items()}
    workspace.model.train()
    for positions in _batches_of(workspace, len(images)):
        batch = images.subset(positions)
        loss = torch.nn.functional.cross_entropy(
            workspace.model(workspace.inputs(batch.images)), batch.labels
        )
        for name, value in named.items():
            loss = loss + 0.35 * ((value - centres[name]) ** 2).sum() + (shifts[name] * value).sum()
        gradients = torch.autograd.grad(loss, list(named.values()))
        kept = [g * masks[name] for name, g in zip(named, gradients, strict=True)]
        norm = torch.sqrt(sum((g**2).sum() for g in kept))  # type: ignore[arg-type]
        factor = min(1.0, clip_norm / (float(norm) + 1e-6)) if clip_norm else 1.0
        with torch.no_grad():
            for (name, value), gradient in zip(named.items(), kept, strict=True):
                step = (gradient * factor + 0.01 * value) * masks[name]
                buffers[name].mul_(0.9).add_(step)
                value.sub_(0.05 * buffers[name])
    torch.testing.assert_close(ours, weights.vector, rtol=1e-4, atol=2e-6)
    assert torch.equal(ours[~trained], start[~trained])


def _batches_of(workspace, number: int):  # type: ignore[no-untyped-def]
    from fedta_app.seeding import torch_generator
    from fedta_app.training.steps import mini_batches

    return mini_batches(number, 8, 3, torch_generator(workspace.config.seed, "batches", 1, 0))


def test_a_correction_leaves_parameters_without_gradient_alone(tmp_path: Path) -> None:
    workspace = build_workspace(RunConfig.from_mapping({**CONFIG, "results-dir": str(tmp_path)}))
    size = workspace.weights.vector.numel()
    correct = GradientCorrection(workspace, Correction(shift=torch.ones(size)), None)
    first = next(workspace.model.parameters())
    first.grad = torch.zeros_like(first)
    correct()
    assert first.grad.eq(1).all()
    assert sum(p.grad is not None for p in workspace.model.parameters()) == 1


def test_a_correction_in_the_backward_pass_gives_the_same_bits(tmp_path: Path) -> None:
    workspace = build_workspace(RunConfig.from_mapping({**CONFIG, "results-dir": str(tmp_path)}))
    model, size = workspace.model, workspace.weights.vector.numel()
    generator = torch.Generator().manual_seed(0)
    centre, shift = (torch.randn(size, generator=generator) for _ in range(2))
    images = workspace.client_data(0)
    inputs = workspace.inputs(images.images[:8])

    def gradients(correct: GradientCorrection, *, early: bool) -> list[torch.Tensor]:
        model.zero_grad()
        with correct.in_backward() if early else nullcontext():
            cross_entropy(model(inputs), images.labels[:8]).backward()
        if not early:
            correct()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model.eval()
    correction = Correction(pull=0.3, centre=centre, shift=shift)
    correct = GradientCorrection(workspace, correction, None)
    late = gradients(correct, early=False)
    for one, other in zip(late, gradients(correct, early=True), strict=True):
        assert torch.equal(one, other)
    nothing = GradientCorrection(workspace, Correction(), None)
    plain = gradients(nothing, early=False)  # the hooks are gone
    assert not any(torch.equal(one, other) for one, other in zip(late, plain, strict=True))


def test_another_loss_takes_the_place_of_cross_entropy(tmp_path: Path) -> None:
    """A loss of zero moves nothing; the reported loss is the rule's."""
    config = RunConfig.from_mapping({**CONFIG, "weight-decay": 0.0, "results-dir": str(tmp_path)})
    workspace = build_workspace(config)
    rule = LocalRule(loss=lambda logits, labels: 0.0 * logits.sum() + 5.0)
    before = workspace.weights.vector.clone()
    optimizer = make_optimizer(config, workspace.model)
    images = workspace.client_data(0)
    assert train_steps(workspace, optimizer, images, lr=0.1, key=(1, 0), rule=rule) == 5.0
    assert torch.equal(workspace.weights.vector, before)
