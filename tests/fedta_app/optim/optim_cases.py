"""Options, tensors and comparisons that the tests of the optimizer share."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fedta_app.optim.sgd_steps import BITS
from fedta_app.seeding import torch_generator

SHAPES = ((), (5,), (7, 3), (2, 3, 2, 2), (40_003,))
STEPS = 5


def _valid_options() -> list[dict[str, Any]]:
    names = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    table = itertools.product((0, 0.9), (0, 0.4), (0, 0.05), (False, True), (False, True))
    options = [dict(zip(names, row, strict=True)) for row in table]
    return [o for o in options if not o["nesterov"] or (o["momentum"] and not o["dampening"])]


OPTIONS = _valid_options()


def label(options: dict[str, Any]) -> str:
    return "-".join(f"{name[:4]}{value}" for name, value in options.items() if value) or "plain"


def normal(shape: Sequence[int], *key: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(tuple(shape), generator=torch_generator(*key)).to(dtype)


def make_params(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(normal(shape, 1, i, dtype=dtype)) for i, shape in enumerate(SHAPES)]


def set_gradients(params: Sequence[Tensor], step: int) -> None:
    for i, param in enumerate(params):
        param.grad = normal(param.shape, 2, i, step, dtype=param.dtype)


def make_masks(params: Sequence[Tensor], density: float = 0.4) -> dict[Tensor, Tensor]:
    """Return random masks, none of which is all True or, but for the scalar's, all False."""
    masks = {p: normal(p.shape, 3, i).abs() < density for i, p in enumerate(params)}
    for mask in masks.values():
        if mask.dim():
            mask.view(-1)[:2] = torch.tensor([True, False])
    return masks


def make_model() -> tuple[nn.Sequential, dict[str, Tensor]]:
    """Return a small model and a mask that freezes one of its tensors whole, another in part."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    for i, param in enumerate(model.parameters()):
        param.data = normal(param.shape, 4, i)
    masks = {"0.weight": torch.zeros(6, 4, dtype=torch.bool), "2.weight": normal((2, 6), 77) > 0}
    return model, masks


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().view(BITS[tensor.dtype])


def same_bits(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


def odd_values(dtype: torch.dtype) -> Tensor:
    """Return the values that arithmetic with zero changes, if it changes any; the last are NaN."""
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    values = [-0.0, 0.0, tiny, -tiny, 1.0, -1.5, torch.inf, -torch.inf, torch.nan]
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def spoil_weights(params: Sequence[Tensor], masks: dict[Tensor, Tensor]) -> None:
    """Put odd values, short of NaN, into the frozen entries of parameters."""
    for param in params:
        param.data[~masks[param]] = _cycle(odd_values(param.dtype)[:-1], ~masks[param])


def spoil_gradients(params: Sequence[Tensor], masks: dict[Tensor, Tensor]) -> None:
    """Put odd values into the frozen entries of gradients."""
    for param in params:
        param.grad[~masks[param]] = _cycle(odd_values(param.dtype).flip(0), ~masks[param])


def _cycle(values: Tensor, where: Tensor) -> Tensor:
    return values[torch.arange(int(where.sum())) % len(values)]
