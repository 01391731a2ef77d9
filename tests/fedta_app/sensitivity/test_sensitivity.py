"""Drawn labels, invariance, what is left untouched, and what is refused."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedta_app.seeding import derive_seed
from fedta_app.sensitivity import fisher_diagonal, fisher_into
from fedta_app.sensitivity.keyed import keyed_uniform
from fedta_app.vectors import Layout
from tests.fedta_app.sensitivity.sensitivity_models import (
    CLASSES,
    Custom,
    Shared,
    assert_scores_close,
    cnn,
    flat,
    naive,
    prepare,
    vit,
)

# Labels


def mix64(value: int) -> int:
    """SplitMix64's finaliser on Python integers."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@given(seed=st.integers(0, 2**62), ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
@settings(deadline=None, max_examples=30)
def test_keyed_uniform_is_a_hash_of_seed_and_id(seed, ids):
    key = derive_seed("label", seed)
    states = (mix64((i * 0x9E3779B97F4A7C15 + key) % 2**64) for i in ids)
    expected = [(mix64(state ^ key) >> 11) / 2**53 for state in states]
    assert keyed_uniform(torch.tensor(ids), seed).tolist() == expected


def test_keyed_uniform_is_uniform_and_unrelated_across_seeds():
    ids = torch.arange(100_000)
    values = [keyed_uniform(ids, seed) for seed in (0, 1)]
    grid = (torch.arange(len(ids), dtype=torch.float64) + 0.5) / len(ids)
    for value in values:
        assert value.min() >= 0
        assert value.max() < 1
        assert (value.sort().values - grid).abs().max() < 2 / math.sqrt(len(ids))  # Kolmogorov
        lagged = torch.corrcoef(torch.stack([value[1:], value[:-1]]))[0, 1]
        assert abs(lagged) < 4 / math.sqrt(len(ids))
    assert abs(torch.corrcoef(torch.stack(values))[0, 1]) < 4 / math.sqrt(len(ids))


def test_labels_are_drawn_from_the_softmax():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, CLASSES)).double()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([0.0, 1.0, -2.0, 0.5, -8.0]))
    count = 20_000
    batch = torch.zeros(count, 4).double(), torch.zeros(count, dtype=torch.int64)
    score = fisher_diagonal(model, [batch], output="logit")["1.bias"]  # counts the labels drawn
    probabilities = model[1].bias.detach().softmax(0)
    assert score.sum() == count
    deviation = (score - count * probabilities).abs()
    assert (deviation < 4 * (count * probabilities).sqrt()).all()


def drawn_labels(model, images, ids, seed=0) -> Tensor:
    cumulative = model(images).detach().double().softmax(1).cumsum(1)
    uniforms = keyed_uniform(ids, seed)
    return torch.tensor(
        [torch.searchsorted(c, u, right=True) for c, u in zip(cumulative, uniforms, strict=True)]
    )


@pytest.mark.parametrize("make", [vit, cnn, Custom])
def test_sampled_labels_are_those_of_the_ids(make):
    model, batches = prepare(make, (16, 16))
    ids = torch.tensor([50, 3, 17, 8, 1, 90, 2**40])
    images = torch.cat([images for images, _ in batches])
    labels = drawn_labels(model, images, ids, seed=5)
    assert len(set(labels.tolist())) > 1  # which, depends on the first weights
    keyed = [(images[:4], labels[:4] * 0, ids[:4]), (images[4:], labels[4:] * 0, ids[4:])]
    scores = fisher_diagonal(model, keyed, seed=5)
    assert_scores_close(scores, naive(model, [(images, labels)]), 1e-5)


def test_without_ids_examples_are_numbered_as_they_come():
    model, batches = prepare(cnn, (16, 16))
    numbered = [(*batches[0], torch.arange(4)), (*batches[1], torch.arange(4, 7))]
    actual, expected = fisher_diagonal(model, batches), fisher_diagonal(model, numbered)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_the_generator_gives_the_seed():
    model, batches = prepare(cnn, (16, 16))

    def scores(generator):
        return flat(fisher_diagonal(model, batches, generator=generator))

    first, again = (torch.Generator().manual_seed(3) for _ in range(2))
    reference = scores(first)
    assert torch.equal(reference, scores(again))
    assert not torch.equal(reference, scores(again))  # a second round draws other labels


@given(cuts=st.sets(st.integers(1, 11), max_size=5), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=12)
def test_neither_batch_size_nor_partition_nor_order_matter(cuts, seed):
    model, batches = prepare(vit, (16, 16), count=12)
    images = torch.cat([images for images, _ in batches])
    labels, ids = torch.zeros(12, dtype=torch.int64), 100 + torch.arange(12)
    whole = fisher_diagonal(model, [(images, labels, ids)], seed=seed)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    bounds = [0, *sorted(cuts), 12]
    parts = [order[start:end] for start, end in pairwise(bounds)]
    clients = [fisher_diagonal(model, [(images[p], labels[p], ids[p])], seed=seed) for p in parts]
    for name, total in whole.items():
        union = sum(client[name] for client in clients)
        torch.testing.assert_close(union, total, rtol=1e-5, atol=1e-6 * float(total.max()))


@pytest.mark.parametrize(("make", "first"), [(vit, 2), (Custom, 0)])  # the fast and the slow path
def test_chosen_parameters_are_scored_into_views_of_one_vector(make, first):
    model, batches = prepare(make, (16, 16))
    expected = fisher_diagonal(model, batches)
    chosen = Layout.of(dict(list(model.named_parameters())[first:]))
    vector = torch.full((chosen.size,), torch.nan)  # whatever is there is overwritten
    fisher_into(model, chosen.views(vector), batches)
    assert torch.equal(vector, chosen.flatten(expected))


# What is left untouched


@pytest.mark.parametrize("make", [vit, cnn, Shared])
def test_the_model_is_left_as_it_was(make):
    model, batches = prepare(make, (16, 16))
    model.train()
    next(model.children()).eval()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    fisher_diagonal(model, batches)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None and p.requires_grad for p in list(model.parameters())[1:])
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_exception_leaves_nothing_behind():
    model, batches = prepare(vit, (16, 16))
    expected = naive(model, batches)
    model.train()
    wrong_size = torch.zeros(4, 3, 8, 8)
    with pytest.raises(AssertionError, match="height"):
        fisher_diagonal(model, [*batches, (wrong_size, torch.zeros(4, dtype=torch.int64))])
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert_scores_close(fisher_diagonal(model, batches, labels="true"), expected, 1e-5)


@pytest.mark.parametrize("make", [vit, Shared])
def test_dropout_autocast_and_no_grad_around_do_not_matter(make):
    model, batches = prepare(make, (16, 16))
    expected = naive(model, batches)
    model = nn.Sequential(nn.Dropout(0.5), model).train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = fisher_diagonal(model, batches, labels="true")
    assert_scores_close(
        {name.removeprefix("1."): score for name, score in scores.items()}, expected, 1e-5
    )


def test_frozen_parameters_are_skipped():
    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError("the frozen bottom was differentiated")

    class Marked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NoBackward.apply(x)

    model, batches = prepare(cnn, (16, 16))
    full = naive(model, batches)
    model.insert(3, Marked())
    trained = {"4.bias": "3.bias", "6.weight": "5.weight"}  # the others, head included, are frozen
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    scores = fisher_diagonal(model, batches, labels="true")
    expected = {name: full[old] for name, old in trained.items()}
    assert_scores_close(scores, expected, 1e-5)
    assert fisher_diagonal(model.requires_grad_(False), batches) == {}


def test_an_unused_parameter_scores_zero():
    model, batches = prepare(cnn, (16, 16))
    model.spare = nn.Module()
    model.spare.weight = nn.Parameter(torch.ones(2))
    model.forward = lambda x: nn.Sequential.forward(model[:8], x)
    scores = fisher_diagonal(model, batches)
    assert torch.equal(scores["spare.weight"], torch.zeros(2))
    assert scores["0.weight"].min() > 0


# What is refused


@pytest.mark.parametrize("option", ["labels", "output"])
def test_unknown_options_are_refused(option):
    with pytest.raises(ValueError, match=f"{option} must be one of .*, got 'typo'"):
        fisher_diagonal(vit(), [], **{option: "typo"})


def test_malformed_batches_are_refused():
    model, [(images, labels), _] = prepare(cnn, (16, 16))
    with pytest.raises(ValueError, match="got a tuple of 1"):
        fisher_diagonal(model, [(images,)])
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(4,\) for 4 images"):
        fisher_diagonal(model, [(images, labels[:3])])
    with pytest.raises(ValueError, match=r"got shapes \(4,\) and \(1,\) for 4 images"):
        fisher_diagonal(model, [(images, labels, labels[:1])])
    with pytest.raises(ValueError, match=r"must return logits .* got shape \(\d+, 6, 4, 2\)"):
        fisher_diagonal(model[:4], [(images, labels)])


def test_batch_statistics_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(ValueError, match="'1' normalises over the batch"):
        fisher_diagonal(model, [])


def test_no_examples_are_refused():
    model, [(images, labels), _] = prepare(cnn, (16, 16))
    for batches in ([], iter([]), [(images[:0], labels[:0])]):
        with pytest.raises(ValueError, match="batches holds no examples"):
            fisher_diagonal(model, batches)
