r"""LARS and LAMB, which scale the step of each tensor to its norm, for large batches.

LARS: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv
1708.03888. For a tensor w with gradient g, weight decay :math:`\beta` and momentum m,

.. math::

    v \leftarrow m v + \eta_t \frac{\lVert w \rVert}{\lVert g \rVert + \beta \lVert w \rVert}
    (g + \beta w), \qquad w \leftarrow w - \mathrm{lr} \cdot v, \qquad \eta_t = 0.001 .

LAMB: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR
2020, arXiv 1904.00962. With Adam's bias-corrected moments,

.. math::

    r = \hat m / (\sqrt{\hat v} + \epsilon) + \beta w, \qquad
    w \leftarrow w - \mathrm{lr} \frac{\lVert w \rVert}{\lVert r \rVert} r .

Both are timm's. Biases and the vectors of normalisation layers take plain steps without decay, as
is usual; timm decides by the weight decay alone, and would also take plain steps for every tensor
where `weight-decay` is 0.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.optim.lamb import Lamb
from timm.optim.lars import Lars
from torch import Tensor
from torch.nn import Parameter


def large_batch_optimizer(
    name: str,
    parameters: Iterable[Parameter],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Return LARS or LAMB over parameters.

    Parameters
    ----------
    name : {"lars", "lamb"}
    momentum : float
        Of LARS; for LAMB its first beta. The second one is 0.999.
    """
    every = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in every if p.ndim > 1]},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0, "always_adapt": False},
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "always_adapt": True}
    found: torch.optim.Optimizer
    if name == "lars":
        found = Lars(groups, momentum=momentum, **options)
    else:
        found = Lamb(groups, betas=(momentum, 0.999), max_grad_norm=None, **options)
    return found


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what an optimizer keeps, as tensors and numbers by name."""
    state = optimizer.state_dict()
    kept: dict[str, Any] = {
        f"{number}/{slot}": value
        for number, slots in state["state"].items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }
    steps = {int(group["step"]) for group in state["param_groups"] if "step" in group}
    return {**kept, "step": max(steps, default=0)}


def load_optimizer_state(optimizer: torch.optim.Optimizer, kept: Mapping[str, Any]) -> None:
    """Restore what `optimizer_state` returned; the optimizer takes over its tensors.

    Raises
    ------
    ValueError
        When a tensor has not the shape of its parameter.
    """
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in kept.items():
        number, _, slot = name.partition("/")
        if slot:
            if value.shape != parameters[int(number)].shape:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}")
            state["state"].setdefault(int(number), {})[slot] = value
    if kept["step"]:
        for group in state["param_groups"]:
            group["step"] = kept["step"]
    optimizer.load_state_dict(state)
