"""The number of steps without momentum that steps with momentum stand for."""

import pytest
import torch

from fedta_app.optim import norm_of_steps


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.0), (5, 0.0), (1, 0.9), (7, 0.9), (40, 0.5)])
def test_the_norm_is_how_far_unit_gradients_move_the_weights(steps: int, momentum: float) -> None:
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=1.0, momentum=momentum)
    for _ in range(steps):
        weight.grad = -torch.ones(1, dtype=torch.float64)
        sgd.step()
    assert norm_of_steps(steps, momentum) == pytest.approx(weight.item())
