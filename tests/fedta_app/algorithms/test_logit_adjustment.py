"""The adjusted loss against its definition, and a client that trains under it."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedta_app.algorithms import make_algorithm
from fedta_app.algorithms.logit_adjustment import LogitAdjustment
from fedta_app.config import RunConfig
from fedta_app.training.client import LocalResult, train_client
from fedta_app.training.workspace import build_workspace

COUNTS = torch.tensor([30, 10, 0, 0])
LOGITS = torch.tensor([[0.5, -1.0, 2.0, 0.1], [1.5, 0.3, -0.4, 0.0]])
LABELS = torch.tensor([0, 1])


def loss_of(counts: torch.Tensor, logits: torch.Tensor, **values: float) -> torch.Tensor:
    rule = LogitAdjustment(**values).local(torch.zeros(1), {}, {})
    rule.begin(counts)
    assert rule.loss is not None
    return rule.loss(logits, LABELS)


def test_the_loss_is_that_of_the_paper() -> None:
    """-log of exp(z_y + t log p_y) / sum_c exp(z_c + t log p_c), written out."""
    tau, smoothing = 1.5, 0.2
    prior = [(n + smoothing * 10) / (40 + 4 * smoothing * 10) for n in COUNTS.tolist()]
    weighted = LOGITS.double().exp() * torch.tensor(prior).double() ** tau
    expected = -(weighted[torch.arange(2), LABELS] / weighted.sum(1)).log().mean()
    found = loss_of(COUNTS, LOGITS, prior_strength=tau, prior_smoothing=smoothing)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_a_balanced_client_trains_under_cross_entropy() -> None:
    logits = LOGITS.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss_of(torch.tensor([5, 5, 5, 5]), logits), logits)
    (expected,) = torch.autograd.grad(cross_entropy(logits, LABELS), logits)
    torch.testing.assert_close(found, expected)


def test_logits_of_classes_without_images_are_hardly_pushed_down() -> None:
    logits = LOGITS.clone().requires_grad_()
    (adjusted,) = torch.autograd.grad(loss_of(COUNTS, logits, prior_smoothing=0.001), logits)
    (plain,) = torch.autograd.grad(cross_entropy(logits, LABELS), logits)
    assert (adjusted[:, 2:] < 0.01 * plain[:, 2:]).all() and (plain[:, 2:] > 0).all()


def test_half_precision_logits_are_adjusted_in_float32() -> None:
    found = loss_of(COUNTS, LOGITS.bfloat16())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(loss_of(COUNTS, LOGITS.bfloat16().float())))


def train(strategy: str, **values: Any) -> LocalResult:
    mapping = {"num-clients": 10, "partition": "classes", "strategy": strategy, "local-steps": 2}
    config = RunConfig.from_mapping(mapping)
    workspace = build_workspace(config)
    result = train_client(
        workspace, workspace.weights.vector.clone(), partition_id=1, server_round=1, lr=0.1,
        algorithm=make_algorithm(strategy, values),
    )  # fmt: skip
    return LocalResult(result.update.clone(), *list(vars(result).values())[1:])


def test_a_client_trains_under_its_own_prior_and_sends_nothing_more() -> None:
    plain = train("fedavg")
    neutral = train("logit-adjustment", prior_strength=0.0)
    adjusted = train("logit-adjustment", prior_strength=1.0)
    assert torch.equal(plain.update, neutral.update)
    assert not torch.equal(plain.update, adjusted.update)
    assert adjusted.sent == {} and adjusted.memory == {}
