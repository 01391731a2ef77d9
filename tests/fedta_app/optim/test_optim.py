"""What a step does: SGD's bits on trained entries, no change at all on frozen ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from fedta_app.optim.sparse_sgdm import SparseSGDM
from tests.fedta_app.optim.optim_cases import (
    OPTIONS,
    STEPS,
    bits,
    label,
    make_masks,
    make_params,
    normal,
    same_bits,
    set_gradients,
    spoil_gradients,
    spoil_weights,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
every_option = pytest.mark.parametrize("options", OPTIONS, ids=label)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@pytest.fixture(params=[False, True], ids=["plain", "foreach"])
def foreach(request: pytest.FixtureRequest) -> bool:
    """Which operations both optimizers use."""
    return bool(request.param)


def test_the_table_of_options_is_complete() -> None:
    assert len(OPTIONS) == 20


@every_dtype
@every_option
@pytest.mark.parametrize("masked", [False, True], ids=["no-mask", "all-true"])
def test_everything_trained_is_sgd(options, dtype, masked, foreach) -> None:
    ours, theirs = make_params(dtype), make_params(dtype)
    masks = {p: torch.ones_like(p, dtype=torch.bool) for p in ours} if masked else None
    sparse = SparseSGDM(ours, 0.1, foreach=foreach, masks=masks, **options)
    sgd = SGD(theirs, 0.1, foreach=foreach, **options)
    for step in range(STEPS):
        for params, optimizer in ((ours, sparse), (theirs, sgd)):
            set_gradients(params, step)
            optimizer.step()
        assert same_bits(ours, theirs)
        assert same_bits(_momenta(sparse, ours), _momenta(sgd, theirs))


@every_dtype
@every_option
def test_partly_trained_is_sgd_on_the_trained_entries(options, dtype, foreach) -> None:
    """Against SGD on whole tensors: in half precision, its bits depend on an entry's position."""
    ours, theirs = make_params(dtype), make_params(dtype)
    masks = make_masks(ours)
    sparse = SparseSGDM(ours, 0.1, foreach=foreach, masks=masks, **options)
    sgd = SGD(theirs, 0.1, foreach=foreach, **options)
    for step in range(STEPS):
        set_gradients(theirs, step)
        set_gradients(ours, step)
        spoil_gradients(ours, masks)
        sparse.step()
        sgd.step()
        assert same_bits(*_trained(masks, ours, theirs))


def _trained(masks, ours, theirs) -> tuple[list[Tensor], list[Tensor]]:
    selected = [masks[p] for p in ours]
    return (
        [p[mask] for p, mask in zip(ours, selected, strict=True)],
        [q[mask] for q, mask in zip(theirs, selected, strict=True)],
    )


def _frozen_entries_hold(
    make: Callable[..., torch.optim.Optimizer], options, dtype=torch.float32, density=0.4
) -> bool:
    """Train densely, freeze, train on; say whether odd values in frozen entries kept their bits.

    `make` takes parameters, masks and options, and returns an optimizer with `set_masks`.
    """
    params = make_params(dtype)
    masks = make_masks(params, density) if density else _none_trained(params)
    optimizer = make(params, **options)
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    optimizer.set_masks(masks)
    spoil_weights(params, masks)
    before = [bits(p)[~masks[p]] for p in params]
    for step in range(2, STEPS):
        set_gradients(params, step)
        spoil_gradients(params, masks)
        optimizer.step()
    return all(torch.equal(bits(p)[~masks[p]], b) for p, b in zip(params, before, strict=True))


def _none_trained(params) -> dict[Tensor, Tensor]:
    return {p: torch.zeros_like(p, dtype=torch.bool) for p in params}


@every_dtype
@every_option
@pytest.mark.parametrize("density", [0, 0.4])
def test_frozen_entries_keep_their_bits(options, dtype, density, foreach) -> None:
    make = lambda params, **kw: SparseSGDM(params, 0.1, foreach=foreach, **kw)  # noqa: E731
    assert _frozen_entries_hold(make, options, dtype, density)


class MaskedGradientSGD(SGD):
    """The usual mistake, to show that the check above would find it."""

    masks: dict[Tensor, Tensor] | None = None

    def set_masks(self, masks: dict[Tensor, Tensor]) -> None:
        self.masks = masks

    def step(self, closure=None):
        for param, mask in (self.masks or {}).items():
            param.grad.masked_fill_(~mask, 0.0)
        return super().step(closure)


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.05},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.4},
    ],
    ids=label,
)
def test_masking_gradients_before_sgd_moves_frozen_entries(options) -> None:
    make = lambda params, **kw: MaskedGradientSGD(params, 0.1, **kw)  # noqa: E731
    assert not _frozen_entries_hold(make, options)


@every_option
def test_momentum_of_frozen_entries_is_zero_after_every_step(options, foreach) -> None:
    params = make_params()
    masks = make_masks(params)
    optimizer = SparseSGDM(params, 0.1, foreach=foreach, masks=masks, **options)
    for step in range(STEPS):
        set_gradients(params, step)
        spoil_gradients(params, masks)
        optimizer.step()
        for param in params:
            momentum = optimizer.state[param].get("momentum_buffer", torch.zeros_like(param))
            assert not bits(momentum)[~masks[param]].any()
            assert not options["momentum"] or momentum[masks[param]].all()


@every_option
@pytest.mark.parametrize("density", [1.0, 0.4])
def test_gradients_are_not_modified(options, density, foreach) -> None:
    params = make_params()
    masks = make_masks(params) if density < 1 else None
    optimizer = SparseSGDM(params, 0.1, foreach=foreach, masks=masks, **options)
    for step in range(2):
        set_gradients(params, step)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert same_bits([p.grad for p in params], before)


@every_option
def test_complementary_masks_add_up_to_the_dense_step(options, foreach) -> None:
    whole, left, right = make_params(), make_params(), make_params()
    masks = make_masks(left)
    rest = {q: ~masks[p] for p, q in zip(left, right, strict=True)}
    for params, mask in ((whole, None), (left, masks), (right, rest)):
        optimizer = SparseSGDM(params, 0.1, foreach=foreach, masks=mask, **options)
        for step in range(STEPS):
            set_gradients(params, step)
            optimizer.step()
    pairs = zip(left, right, strict=True)
    assert same_bits([torch.where(masks[p], p, q) for p, q in pairs], whole)


def test_a_tensor_frozen_whole_is_skipped_with_its_gradient_and_needs_no_momentum() -> None:
    param = torch.nn.Parameter(torch.tensor([torch.nan, 1.0], dtype=torch.bfloat16))
    before = bits(param)
    optimizer = SparseSGDM([param], 0.1, momentum=0.9, masks=_none_trained([param]))
    param.grad = torch.full_like(param, torch.inf)
    optimizer.step()
    assert torch.equal(bits(param), before)
    assert not optimizer.state


def test_the_first_step_has_no_dampening() -> None:
    param = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    mask = torch.tensor([True, False])
    optimizer = SparseSGDM([param], 1.0, momentum=0.5, dampening=0.5, masks={param: mask})
    for expected in ([1.0, 0.0], [1.0, 0.0]):  # b = g = 1, then 0.5 * 1 + 0.5 * 1
        param.grad = torch.ones(2)
        optimizer.step()
        assert optimizer.state[param]["momentum_buffer"].tolist() == expected
    assert param.tolist() == [-1.0, 1.0]


@every_dtype
@every_option
def test_late_and_missing_gradients_follow_sgd(options, dtype, foreach) -> None:
    ours, theirs = make_params(dtype), make_params(dtype)
    masks = make_masks(ours)
    sparse = SparseSGDM(ours, 0.1, foreach=foreach, masks=masks, **options)
    sgd = SGD(theirs, 0.1, foreach=foreach, **options)
    for step in range(STEPS):
        for params, optimizer in ((ours, sparse), (theirs, sgd)):
            set_gradients(params, step)
            for i, param in enumerate(params):
                if step < i or step == 4:  # the i-th comes in at step i; at the last one, none has
                    param.grad = None
            optimizer.step()
    assert same_bits(*_trained(masks, ours, theirs))


def test_groups_keep_their_own_options(foreach) -> None:
    results = []
    for kind in (SparseSGDM, SGD):
        params = make_params()
        groups = [
            {"params": params[:2], "lr": 0.01, "weight_decay": 0.1},
            {"params": params[2:4], "momentum": 0.9, "nesterov": True},
            {"params": params[4:], "maximize": True, "foreach": None},
        ]
        optimizer = kind(groups, lr=0.1, foreach=foreach)
        for step in range(STEPS):
            set_gradients(params, step)
            optimizer.step()
        results.append(params)
    assert same_bits(*results)


def test_strided_parameters_and_gradients(foreach) -> None:
    results = []
    for masked in (False, True):
        param = torch.nn.Parameter(normal((6, 4), 9).t())
        mask = normal((4, 6), 10) > 0
        masks = {param: mask} if masked else None
        options = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}
        optimizer = SparseSGDM([param], 0.1, foreach=foreach, masks=masks, **options)
        for step in range(STEPS):
            param.grad = normal((6, 4), 11, step).t()
            optimizer.step()
        results.append(param.detach())
    dense, sparse = results
    assert same_bits([sparse[mask]], [dense[mask]])
    assert same_bits([sparse[~mask]], [normal((6, 4), 9).t()[~mask]])


def _momenta(optimizer, params) -> list[Tensor]:
    return [b for p in params if (b := optimizer.state[p].get("momentum_buffer")) is not None]
