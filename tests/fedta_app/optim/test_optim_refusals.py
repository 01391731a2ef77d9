"""What the optimizer refuses, and what it says."""

import math

import pytest
import torch
from torch import nn

from fedta_app.optim.sparse_sgdm import SparseSGDM
from tests.fedta_app.optim.optim_cases import make_model, make_params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": torch.ones(2)}, "lr has 2 elements"),
        ({"momentum": -1}, "momentum is -1"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"nesterov": True}, "nesterov is True"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov is True"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        SparseSGDM(make_params(), **{"lr": 0.1, **options})
    if "lr" not in options:
        with pytest.raises(ValueError, match=message):
            SparseSGDM([{"params": make_params(), **options}], 0.1)


@pytest.mark.parametrize("name", ["fused", "differentiable", "masks"])
def test_group_options_that_sgdm_does_not_have_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"sets {name}"):
        SparseSGDM([{"params": make_params(), name: True}], 0.1)


@pytest.mark.parametrize(
    ("key", "mask", "message"),
    [
        ("2.weight", torch.ones(6, 2) > 0, r"shape \(6, 2\); the parameter has \(2, 6\)"),
        ("2.weight", torch.ones(2, 6), "dtype torch.float32; it must be torch.bool"),
        ("nothing", torch.ones(2, 6) > 0, "'nothing', which the optimizer does not hold"),
        (nn.Parameter(torch.ones(2)), torch.ones(2) > 0, "does not hold"),
    ],
)
def test_bad_masks_are_refused_and_change_nothing(key, mask, message) -> None:
    model, masks = make_model()
    optimizer = SparseSGDM(model.named_parameters(), 0.1, masks=masks)
    before = dict(optimizer._masks)
    with pytest.raises(ValueError, match=message):
        optimizer.set_masks({key: mask})
    assert optimizer._masks == before


def test_masks_by_name_need_names_and_come_once() -> None:
    model, masks = make_model()
    with pytest.raises(ValueError, match="names need named_parameters"):
        SparseSGDM(model.parameters(), 0.1, masks=masks)
    twice = {"0.weight": masks["0.weight"], model[0].weight: masks["0.weight"]}
    with pytest.raises(ValueError, match="twice"):
        SparseSGDM(model.named_parameters(), 0.1, masks=twice)


def test_a_masked_complex_parameter_is_refused() -> None:
    param = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="has dtype"):
        SparseSGDM([param], 0.1, masks={param: torch.tensor([True, False])})


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.11 has no other way
def test_bad_gradients_and_rates_are_refused_at_the_step() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = SparseSGDM([param], 0.1)
    param.grad = torch.sparse_coo_tensor([[0]], [1.0], (3,), check_invariants=True)
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr is -1"):
        optimizer.step()
