import math

import pytest
import torch

from fedta_app.config import RunConfig
from fedta_app.training.schedule import learning_rate


def rates(**values: object) -> list[float]:
    config = RunConfig.from_mapping({"lr": 0.2, "num-server-rounds": 8, **values})
    return [learning_rate(config, r) for r in range(1, 9)]


def test_constant() -> None:
    assert rates() == [0.2] * 8


def test_step() -> None:
    found = rates(**{"lr-schedule": "step", "lr-step-rounds": 3, "lr-step-factor": 0.5})
    assert found == [0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05]


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(**{"lr-schedule": "cosine"}) == pytest.approx(expected, rel=1e-12)


def test_warmup_reaches_the_peak_and_then_follows_the_cosine() -> None:
    found = rates(**{"lr-schedule": "warmup-cosine", "warmup-rounds": 4})
    assert found[:5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    assert found[-1] == pytest.approx(0.1 * (1 + math.cos(math.pi * 3 / 4)))
