"""LARS and LAMB as they are set up here, against their formulas."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from fedta_app.optim.large_batch import (
    large_batch_optimizer,
    load_optimizer_state,
    optimizer_state,
)

LR, MOMENTUM = 0.1, 0.9


def problem() -> tuple[list[Parameter], list[list[Tensor]]]:
    """Return a matrix and a vector, and their gradients in three steps."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (4,)]
    parameters = [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    steps = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]
    return parameters, steps


def take(optimizer: torch.optim.Optimizer, parameters: list[Parameter], step: list[Tensor]) -> None:
    for parameter, gradient in zip(parameters, step, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lars_by_its_formula(decay: float) -> None:
    """The matrix is scaled to its norm whatever the weight decay; the vector takes SGD's steps."""
    parameters, steps = problem()
    optimizer = large_batch_optimizer(
        "lars", parameters, lr=LR, momentum=MOMENTUM, weight_decay=decay
    )
    matrix, vector = (parameter.detach().clone() for parameter in parameters)
    buffers = [torch.zeros_like(matrix), torch.zeros_like(vector)]
    for step in steps:
        take(optimizer, parameters, step)
        ratio = 0.001 * matrix.norm() / (step[0].norm() + decay * matrix.norm())
        buffers[0] = MOMENTUM * buffers[0] + ratio * (step[0] + decay * matrix)
        buffers[1] = MOMENTUM * buffers[1] + step[1]
        matrix, vector = matrix - LR * buffers[0], vector - LR * buffers[1]
    torch.testing.assert_close(parameters[0].detach(), matrix)
    torch.testing.assert_close(parameters[1].detach(), vector)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lamb_by_its_formula(decay: float) -> None:
    parameters, steps = problem()
    optimizer = large_batch_optimizer(
        "lamb", parameters, lr=LR, momentum=MOMENTUM, weight_decay=decay
    )
    weights = [parameter.detach().clone() for parameter in parameters]
    first = [torch.zeros_like(weight) for weight in weights]
    second = [torch.zeros_like(weight) for weight in weights]
    for number, step in enumerate(steps, start=1):
        take(optimizer, parameters, step)
        for i, gradient in enumerate(step):
            first[i] = MOMENTUM * first[i] + (1 - MOMENTUM) * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            root = (second[i] / (1 - 0.999**number)).sqrt()
            move = first[i] / (1 - MOMENTUM**number) / (root + 1e-6)
            if weights[i].ndim > 1:
                move = move + decay * weights[i]
                move = move * weights[i].norm() / move.norm()
            weights[i] = weights[i] - LR * move
    for parameter, weight in zip(parameters, weights, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_restored_optimizer_goes_on_with_the_same_bits(name: str) -> None:
    parameters, steps = problem()
    options = {"lr": LR, "momentum": MOMENTUM, "weight_decay": 0.1}
    optimizer = large_batch_optimizer(name, parameters, **options)
    take(optimizer, parameters, steps[0])
    take(optimizer, parameters, steps[1])
    copies = [Parameter(parameter.detach().clone()) for parameter in parameters]
    again = large_batch_optimizer(name, copies, **options)
    load_optimizer_state(again, copy.deepcopy(optimizer_state(optimizer)))
    take(optimizer, parameters, steps[2])
    take(again, copies, steps[2])
    for one, other in zip(parameters, copies, strict=True):
        assert torch.equal(one, other)


def test_a_fresh_state_can_be_restored_too() -> None:
    parameters, steps = problem()
    optimizer = large_batch_optimizer("lamb", parameters, lr=LR, momentum=0.9, weight_decay=0.0)
    load_optimizer_state(optimizer, optimizer_state(optimizer))
    take(optimizer, parameters, steps[0])
    assert optimizer_state(optimizer)["step"] == 1
