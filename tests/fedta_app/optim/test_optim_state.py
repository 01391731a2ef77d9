"""Masks, checkpoints and the rest of a training loop around the optimizer's step."""

import copy
import hashlib

import pytest
import torch
from torch import nn
from torch.optim import SGD

from fedta_app.optim.sparse_sgdm import SparseSGDM
from tests.fedta_app.optim.optim_cases import (
    OPTIONS,
    bits,
    label,
    make_masks,
    make_model,
    make_params,
    normal,
    same_bits,
    set_gradients,
)

SGDM = {"momentum": 0.9, "weight_decay": 0.05}
every_momentum = pytest.mark.parametrize(
    "options", [o for o in OPTIONS if o["momentum"]], ids=label
)


def _train(optimizer, params, steps) -> None:
    for step in steps:
        set_gradients(params, step)
        optimizer.step()


def _loss(model: nn.Module) -> torch.Tensor:
    return model(normal((8, 4), 5)).square().sum()


def _fit(model: nn.Module, optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(model).backward()
        optimizer.step()


@every_momentum
def test_a_resumed_run_is_an_unbroken_run(options) -> None:
    whole, parts = make_params(), make_params()
    optimizer = SparseSGDM(whole, 0.1, masks=make_masks(whole), **options)
    _train(optimizer, whole, range(6))
    first = SparseSGDM(parts, 0.1, masks=make_masks(parts), **options)
    _train(first, parts, range(3))
    saved = copy.deepcopy(first.state_dict())
    second = SparseSGDM(parts, 7.0, masks=make_masks(parts))  # its options come from the state
    second.load_state_dict(saved)
    _train(second, parts, range(3, 6))
    assert same_bits(whole, parts)


@every_momentum
def test_the_state_of_sgd_loads_with_frozen_momentum_zeroed(options) -> None:
    params, dense = make_params(), make_params()
    sgd = SGD(dense, 0.1, **options)
    _train(sgd, dense, range(3))
    momenta = [sgd.state[p]["momentum_buffer"].clone() for p in dense]
    masks = make_masks(params)
    optimizer = SparseSGDM(params, 0.1, masks=masks)
    optimizer.load_state_dict(sgd.state_dict())
    for param, momentum in zip(params, momenta, strict=True):
        loaded = optimizer.state[param]["momentum_buffer"]
        assert same_bits([loaded[masks[param]]], [momentum[masks[param]]])
        assert not bits(loaded)[~masks[param]].any()
    assert same_bits([sgd.state[p]["momentum_buffer"] for p in dense], momenta)


def test_sgd_takes_the_state_over() -> None:
    ours, theirs = make_params(), make_params()
    sparse, sgd = SparseSGDM(ours, 0.1, **SGDM), SGD(theirs, 0.1, **SGDM)
    _train(sparse, ours, range(2))
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    sgd = SGD(theirs, 1.0)
    sgd.load_state_dict(copy.deepcopy(sparse.state_dict()))
    for optimizer, params in ((sparse, ours), (sgd, theirs)):
        _train(optimizer, params, range(2, 5))
    assert same_bits(ours, theirs)


def test_the_state_holds_a_fingerprint_and_no_mask() -> None:
    model, masks = make_model()
    optimizer = SparseSGDM(model.named_parameters(), 0.1, masks=masks, **SGDM)
    _fit(model, optimizer, 1)
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups", "mask_fingerprint"}
    assert {key for entry in state["state"].values() for key in entry} == {"momentum_buffer"}
    assert not any(isinstance(v, torch.Tensor) for g in state["param_groups"] for v in g.values())


@pytest.mark.parametrize("others", [None, {"2.weight": torch.ones(2, 6).tril() > 0}])
def test_a_state_under_other_masks_is_refused(others) -> None:
    model, masks = make_model()
    saved = SparseSGDM(model.named_parameters(), 0.1, masks=masks).state_dict()
    with pytest.raises(ValueError, match="set the same masks before loading"):
        SparseSGDM(model.named_parameters(), 0.1, masks=others).load_state_dict(saved)


def test_the_fingerprint_is_the_hash_of_packed_bits_by_name() -> None:
    masks = {"b": torch.tensor([True, False, True]), "a": torch.tensor([[False, True]])}
    shapes = {name: torch.nn.Parameter(torch.zeros(mask.shape)) for name, mask in masks.items()}
    more = {**shapes, "c": torch.nn.Parameter(torch.zeros(2, 2))}

    def fingerprint(parameters, masks) -> str:
        optimizer = SparseSGDM(list(parameters.items()), 0.1, masks=masks)
        return str(optimizer.state_dict()["mask_fingerprint"])

    text = b"a\x1f(1, 2)\x1f" + bytes([0b01000000]) + b"b\x1f(3,)\x1f" + bytes([0b10100000])
    own = fingerprint(shapes, masks)
    assert own == hashlib.sha256(text).hexdigest()
    assert fingerprint(dict(reversed(shapes.items())), masks) == own
    assert fingerprint(more, {**masks, "c": torch.ones(2, 2) > 0}) == own  # trained whole
    assert fingerprint(shapes, {**masks, "b": ~masks["b"]}) != own


@every_momentum
def test_masks_change_between_rounds(options) -> None:
    """Against SGD, with momentum zeroed and weights put back by hand."""
    ours, theirs = make_params(), make_params()
    sparse, sgd = SparseSGDM(ours, 0.1, **options), SGD(theirs, 0.1, **options)
    rounds = [None, make_masks(ours), {p: ~m for p, m in make_masks(ours).items()}, None]
    for number, masks in enumerate(rounds):
        sparse.set_masks(masks)
        frozen = [~masks[p] if masks else torch.zeros_like(p, dtype=torch.bool) for p in ours]
        _clear(sgd, theirs, frozen)
        for step in range(3 * number, 3 * number + 3):
            kept = [q.detach().clone() for q in theirs]
            _train(sparse, ours, [step])
            _train(sgd, theirs, [step])
            for param, old, where in zip(theirs, kept, frozen, strict=True):
                param.data[where] = old[where]
            _clear(sgd, theirs, frozen)
            assert same_bits(ours, theirs)


def _clear(sgd, params, frozen) -> None:
    for param, where in zip(params, frozen, strict=True):
        if "momentum_buffer" in sgd.state[param]:
            sgd.state[param]["momentum_buffer"][where] = 0.0


def test_set_masks_zeroes_frozen_momentum_at_once() -> None:
    params = make_params()
    optimizer = SparseSGDM(params, 0.1, **SGDM)
    _train(optimizer, params, range(2))
    before = [optimizer.state[p]["momentum_buffer"].clone() for p in params]
    masks = make_masks(params)
    optimizer.set_masks(masks)
    for param, old in zip(params, before, strict=True):
        momentum = optimizer.state[param]["momentum_buffer"]
        assert same_bits([momentum[masks[param]]], [old[masks[param]]])
        assert not bits(momentum)[~masks[param]].any()


def test_masks_by_name_and_by_parameter_are_the_same() -> None:
    results = []
    for by_name in (True, False):
        model, masks = make_model()
        named = dict(model.named_parameters())
        given = masks if by_name else {named[name]: mask for name, mask in masks.items()}
        _fit(model, SparseSGDM(model.named_parameters(), 0.1, masks=given, **SGDM))
        results.append(list(model.parameters()))
    assert same_bits(*results)
    start, _ = make_model()
    assert same_bits([results[0][0]], [start[0].weight])  # frozen whole
    assert not same_bits([results[0][1]], [start[0].bias])  # not listed: trained whole


def test_schedules_and_a_tensor_learning_rate() -> None:
    results = []
    for kind in (SparseSGDM, SGD):
        for lr in (0.1, torch.tensor(0.1)):
            params = make_params()
            optimizer = kind(params, lr, **SGDM)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
            for step in range(4):
                _train(optimizer, params, [step])
                schedule.step()
            results.append(params)
    assert same_bits(results[0], results[2])
    assert same_bits(results[1], results[3])


def test_a_learning_rate_of_zero_moves_nothing() -> None:
    params = [nn.Parameter(torch.tensor([-0.0, -0.0, 1.0]))]
    optimizer = SparseSGDM(params, 0, masks={params[0]: torch.tensor([False, True, True])})
    params[0].grad = torch.tensor([1.0, 1.0, -1.0])
    optimizer.step()
    assert same_bits(params, [torch.tensor([-0.0, -0.0, 1.0])])


def test_the_gradient_scaler_skips_overflow_and_unscales() -> None:
    (scaled, masks), (plain, _) = make_model(), make_model()
    optimizers = [
        SparseSGDM(m.named_parameters(), 0.1, masks=masks, **SGDM) for m in (scaled, plain)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for overflow in (False, True, False):
        before = [p.detach().clone() for p in scaled.parameters()]
        optimizers[0].zero_grad()
        scaler.scale(_loss(scaled)).backward()
        if overflow:
            scaled[2].bias.grad[0] = torch.inf
        scaler.step(optimizers[0])
        scaler.update()
        if overflow:
            assert same_bits(list(scaled.parameters()), before)
        else:
            _fit(plain, optimizers[1], 1)
    assert same_bits(list(scaled.parameters()), list(plain.parameters()))


def test_the_closure_is_evaluated_with_gradients() -> None:
    (one, masks), (two, _) = make_model(), make_model()
    optimizer = SparseSGDM(one.named_parameters(), 0.1, masks=masks, **SGDM)

    def closure() -> float:
        optimizer.zero_grad()
        loss = _loss(one)
        loss.backward()
        return loss.item()

    with torch.no_grad():
        assert optimizer.step(closure) == _loss(two).item()
    _fit(two, SparseSGDM(two.named_parameters(), 0.1, masks=masks, **SGDM), 1)
    assert same_bits(list(one.parameters()), list(two.parameters()))


def test_frozen_tensors_get_no_gradient_and_the_result_is_the_same() -> None:
    (one, masks), (two, _) = make_model(), make_model()
    optimizer = SparseSGDM(one.named_parameters(), 0.1, masks=masks, **SGDM)
    with optimizer.skip_frozen_tensors():
        _fit(one, optimizer)
        assert one[0].weight.grad is None
        with pytest.raises(ValueError, match="inside skip_frozen_tensors"):
            optimizer.set_masks(None)
    _fit(two, SparseSGDM(two.named_parameters(), 0.1, masks=masks, **SGDM))
    assert same_bits(list(one.parameters()), list(two.parameters()))
    assert all(p.requires_grad for p in one.parameters())
    optimizer.set_masks(None)
    _fit(one, optimizer, 1)
    assert not same_bits([one[0].weight], [two[0].weight])


def test_requires_grad_is_restored_after_an_error_and_left_off_where_it_was() -> None:
    model, masks = make_model()
    masks["0.bias"] = torch.zeros(6, dtype=torch.bool)
    model[0].bias.requires_grad_(False)
    optimizer = SparseSGDM(model.named_parameters(), 0.1, masks=masks)
    with pytest.raises(KeyError), optimizer.skip_frozen_tensors():
        raise KeyError
    assert model[0].weight.requires_grad
    assert not model[0].bias.requires_grad
    optimizer.set_masks(None)


def test_masked_gradients_are_what_clipping_sees() -> None:
    model, masks = make_model()
    optimizer = SparseSGDM(model.named_parameters(), 0.1, masks=masks)
    _loss(model).backward()
    model[0].weight.grad[:] = torch.inf
    kept = model[2].weight.grad[masks["2.weight"]].clone()
    optimizer.mask_gradients()
    assert not bits(model[0].weight.grad).any()
    assert not bits(model[2].weight.grad)[~masks["2.weight"]].any()
    assert same_bits([model[2].weight.grad[masks["2.weight"]]], [kept])
    expected = [kept.norm(), model[0].bias.grad.norm(), model[2].bias.grad.norm()]
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert torch.allclose(norm, torch.stack(expected).norm())


def test_a_copy_of_model_and_optimizer_trains_alike() -> None:
    model, masks = make_model()
    optimizer = SparseSGDM(model.named_parameters(), 0.1, masks=masks, **SGDM)
    _fit(model, optimizer)
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    _fit(model, optimizer)
    _fit(model_copy, optimizer_copy)
    assert same_bits(list(model.parameters()), list(model_copy.parameters()))
