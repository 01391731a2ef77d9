"""Random options, tensors and masks in four dtypes, against torch.optim.SGD bit for bit."""

import copy
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD

from fedta_app.optim import SparseSGDM
from tests.fedta_app.optim.optim_cases import bits, normal, same_bits

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
rates = st.floats(0, 2, allow_subnormal=False)


@st.composite
def option_sets(draw: st.DrawFn) -> dict[str, Any]:
    options = {
        "lr": draw(rates),
        "momentum": draw(st.sampled_from([0.0, 0.9]) | st.floats(0, 1)),
        "dampening": draw(st.just(0.0) | st.floats(0, 1)),
        "weight_decay": draw(st.just(0.0) | st.floats(0, 1)),
        "maximize": draw(st.booleans()),
        "foreach": draw(st.sampled_from([None, True, False])),
    }
    allowed = options["momentum"] > 0 and options["dampening"] == 0
    return options | {"nesterov": allowed and draw(st.booleans())}


@st.composite
def shapes(draw: st.DrawFn) -> list[tuple[int, ...]]:
    return draw(
        st.lists(st.lists(st.integers(1, 9), max_size=3).map(tuple), min_size=1, max_size=4)
    )


def _momenta(optimizer: torch.optim.Optimizer, params: list[Parameter]) -> list[Tensor]:
    return [b for p in params if (b := optimizer.state[p].get("momentum_buffer")) is not None]


@settings(max_examples=150, deadline=None)
@given(option_sets(), shapes(), st.data())
def test_random_options_are_sgd_on_what_is_trained_and_nothing_elsewhere(
    options, shapes, data
) -> None:
    """Each tensor has its own dtype, gradients come late or not at all, masks are of any kind."""
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in shapes]
    kind = data.draw(st.sampled_from(["no mask", "all true", "random"]))
    seed = data.draw(st.integers(0, 1000))
    ours, theirs = (
        [
            Parameter(normal(s, seed, i, dtype=d))
            for i, (s, d) in enumerate(zip(shapes, dtypes, strict=True))
        ]
        for _ in range(2)
    )
    masks = {p: normal(p.shape, seed, i, 3) > -0.3 for i, p in enumerate(ours)}
    for mask in masks.values():
        # SGD steps on every tensor, ours only on those with a True.
        mask.view(-1)[: 1 if kind == "random" else None] = True
    sparse = SparseSGDM(ours, masks=None if kind == "no mask" else masks, **options)
    sgd = SGD(theirs, **options)
    before = [bits(p)[~masks[p]] for p in ours]
    for step in range(4):
        late = data.draw(st.sets(st.integers(0, len(shapes) - 1)))
        for params, optimizer in ((ours, sparse), (theirs, sgd)):
            for i, param in enumerate(params):
                gradient = normal(param.shape, seed, i, step, 7, dtype=param.dtype)
                param.grad = None if i in late else gradient
            optimizer.step()
        trained = [masks[p] for p in ours]
        assert same_bits(
            *([p[m] for p, m in zip(ps, trained, strict=True)] for ps in (ours, theirs))
        )
        if kind != "random":
            assert same_bits(_momenta(sparse, ours), _momenta(sgd, theirs))
    frozen = [bits(p)[~masks[p]] for p in ours]
    assert all(torch.equal(a, b) for a, b in zip(frozen, before, strict=True))


OLD = {  # the options of a group in the releases of torch that saved them
    "1.0": ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
    "1.11": ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"),
    "1.12": ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach"),
}


@settings(max_examples=30, deadline=None)
@given(option_sets(), st.sampled_from(sorted(OLD)), st.booleans())
def test_states_that_older_torch_saved_load_as_in_sgd(options, release, masked) -> None:
    options = {k: v for k, v in options.items() if k in OLD[release]}
    first = [Parameter(normal((3, 2), 1)), Parameter(normal((5,), 2))]
    sgd = SGD(first, **options)
    for i, param in enumerate(first):
        param.grad = normal(param.shape, 3, i)
    sgd.step()
    state = sgd.state_dict()
    for group in state["param_groups"]:
        for name in group.keys() - {"params", *OLD[release]}:
            del group[name]
    results = []
    masks = [normal((3, 2), 4) > 0, normal((5,), 5) > 0]
    for kind in (SparseSGDM, SGD):
        params = [Parameter(p.detach().clone()) for p in first]
        optimizer = kind(params, lr=0.5)
        if masked and kind is SparseSGDM:
            optimizer.set_masks(dict(zip(params, masks, strict=True)))
        optimizer.load_state_dict(copy.deepcopy(state))
        for step in range(2):
            for i, param in enumerate(params):
                param.grad = normal(param.shape, 6, i, step)
            optimizer.step()
        results.append(params)
    chosen = [m if masked else torch.ones_like(m) for m in masks]
    assert same_bits(*([p[m] for p, m in zip(ps, chosen, strict=True)] for ps in results))
    for ours, start, mask in zip(results[0], first, chosen, strict=True):
        assert torch.equal(ours[~mask], start[~mask])
