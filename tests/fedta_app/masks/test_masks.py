import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.masks import MASK_RULES, build_mask, round_density

few = settings(deadline=None, max_examples=25)
SHAPES = {"patch.weight": (6, 3, 2, 2), "cls": (1, 1, 8), "fc.weight": (40, 30), "fc.bias": (7,)}
N = 72 + 8 + 1200 + 7


def random_tensors(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def trained(mask):
    return set(flat(mask).nonzero()[:, 0].tolist())


def density(mask):
    return len(trained(mask)) / flat(mask).numel()


def first_by(values, count):
    """The `count` first positions by (value, position), by Python's stable sort."""
    return set(sorted(range(len(values)), key=values.__getitem__)[:count])


def test_the_rules_of_the_design_come_first():
    assert MASK_RULES == (
        "least-sensitive",
        "most-sensitive",
        "lowest-magnitude",
        "highest-magnitude",
        "random",
        "agreement",
        "contrast",
    )


HARD_SCORES = {
    "distinct": lambda w: w.square(),
    "zeros": torch.zeros_like,
    "mostly zeros": lambda w: w.clamp(min=1.5) - 1.5,
    "three values": lambda w: w.sign().round() * 0.5,
    "infinite": lambda w: torch.full_like(w, math.inf),
    "denormal": lambda w: w.abs() * 1e-44,
}


@pytest.mark.parametrize("kind", HARD_SCORES)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.0, 1.0])
@pytest.mark.parametrize("rule", MASK_RULES)
def test_density_is_exact(rule, share, scope, kind):
    hard = {name: HARD_SCORES[kind](w) for name, w in random_tensors(0).items()}
    mask = build_mask(hard, rule=rule, sparsity=1 - share, scores=hard, scope=scope)
    assert len(trained(mask)) == round(share * N)
    assert density(mask) == round(share * N) / N
    for name, tensor in mask.items():
        assert tensor.dtype == torch.bool
        assert tensor.shape == SHAPES[name]
        if scope == "layer":
            assert abs(int(tensor.sum()) - share * tensor.numel()) < 1
    assert list(mask) == list(SHAPES)


@pytest.mark.parametrize("kind", HARD_SCORES)
def test_rules_choose_by_value_then_position(kind):
    weights = random_tensors(0)
    scores = {name: HARD_SCORES[kind](w) for name, w in random_tensors(1).items()}
    count = round(0.1 * N)
    by_score, by_size = flat(scores).tolist(), flat(weights).abs().tolist()
    expected = {
        "least-sensitive": first_by(by_score, count),
        "most-sensitive": first_by([-s for s in by_score], count),
        "lowest-magnitude": first_by(by_size, count),
        "highest-magnitude": first_by([-s for s in by_size], count),
        "agreement": first_by(by_score, count),
    }
    for rule, positions in expected.items():
        assert trained(build_mask(weights, rule=rule, sparsity=0.9, scores=scores)) == positions


def test_layer_scope_chooses_within_each_tensor():
    scores = random_tensors(1)
    scores["fc.bias"] += 100  # no entry would be trained globally
    mask = build_mask(scores, rule="least-sensitive", sparsity=0.5, scores=scores, scope="layer")
    for name, tensor in mask.items():
        count = int(tensor.sum())
        assert trained({name: tensor}) == first_by(scores[name].flatten().tolist(), count)
    spread = build_mask(scores, rule="least-sensitive", sparsity=0.5, scores=scores)
    assert not spread["fc.bias"].any()


@few
@given(st.integers(0, 10**6), st.integers(0, N), st.integers(0, N))
def test_least_and_most_are_complements_and_masks_are_nested(seed, count, other):
    scores = random_tensors(seed)  # distinct
    sets = {}
    for rule in ("least-sensitive", "most-sensitive", "random"):
        for size in (count, other, N - count):
            mask = build_mask(scores, rule=rule, sparsity=1 - size / N, scores=scores, seed=seed)
            sets[rule, size] = trained(mask)
            assert len(sets[rule, size]) == size
    everything = set(range(N))
    assert sets["least-sensitive", count] == everything - sets["most-sensitive", N - count]
    for rule in ("least-sensitive", "most-sensitive", "random"):
        assert sets[rule, min(count, other)] <= sets[rule, max(count, other)]


@few
@given(st.integers(0, 10**6), st.sampled_from(MASK_RULES), st.sampled_from(["global", "layer"]))
def test_only_alive_entries_are_chosen(seed, rule, scope):
    weights = random_tensors(seed)
    generator = torch.Generator().manual_seed(seed)
    alive = {n: torch.rand(w.shape, generator=generator) < 0.3 for n, w in weights.items()}
    alive["fc.bias"][:] = False  # its share goes elsewhere
    scores = {n: w.round().where(w < 1, torch.inf) for n, w in weights.items()}
    mask = build_mask(weights, rule=rule, sparsity=0.8, scores=scores, scope=scope, alive=alive)
    assert trained(mask) <= trained(alive)
    assert len(trained(mask)) == round_density(0.8, N)
    exactly = build_mask(
        weights, rule=rule, sparsity=1 - density(alive), scores=scores, scope=scope, alive=alive
    )
    assert trained(exactly) == trained(alive)


def test_random_is_keyed_by_seed_and_name_alone():
    weights = random_tensors(0)
    mask = build_mask(weights, rule="random", sparsity=0.9, seed=3)
    other_values = build_mask(random_tensors(1), rule="random", sparsity=0.9, seed=3)
    assert trained(mask) == trained(other_values)
    assert trained(mask) != trained(build_mask(weights, rule="random", sparsity=0.9, seed=4))
    backwards = {name: weights[name] for name in reversed(weights)}
    reordered = build_mask(backwards, rule="random", sparsity=0.9, seed=3)
    assert all(torch.equal(mask[name], reordered[name]) for name in mask)


def test_random_is_uniform():
    weights = {"a": torch.zeros(50_000), "b": torch.zeros(50_000)}
    mask = build_mask(weights, rule="random", sparsity=0.9)
    assert int(mask["a"].sum()) == pytest.approx(5000, abs=300)
    assert int(mask["a"][:25_000].sum()) == pytest.approx(2500, abs=200)
    other = build_mask(weights, rule="random", sparsity=0.9, seed=1)
    assert len(trained(mask) & trained(other)) == pytest.approx(1000, abs=150)


def test_a_threshold_trains_what_is_on_its_side():
    weights = {"w": torch.tensor([-3.0, 1.0, -1.0, 2.0, 0.0]), "v": torch.tensor([1.0])}
    scores = {"w": torch.tensor([0.1, 0.2, 0.3, math.inf, 0.0]), "v": torch.tensor([0.2])}
    expected = {
        "least-sensitive": ({0, 1, 4, 5}, 0.2),
        "most-sensitive": ({1, 2, 3, 5}, 0.2),
        "lowest-magnitude": ({1, 2, 4, 5}, 1.0),
        "highest-magnitude": ({0, 1, 2, 3, 5}, 1.0),
    }
    for rule, (positions, threshold) in expected.items():
        mask = build_mask(weights, rule=rule, scores=scores, threshold=threshold)
        assert trained(mask) == positions
        assert density(mask) == len(positions) / 6
    alive = {"w": torch.tensor([True, False, True, False, False]), "v": torch.tensor([False])}
    mask = build_mask(weights, rule="least-sensitive", scores=scores, threshold=1.0, alive=alive)
    assert trained(mask) == {0, 2}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type_will_do_and_inputs_are_untouched(dtype):
    weights = {name: w.to(dtype) for name, w in random_tensors(0).items()}
    before = {name: w.clone() for name, w in weights.items()}
    for rule in MASK_RULES:
        mask = build_mask(weights, rule=rule, sparsity=0.7, scores=weights)
        assert len(trained(mask)) == round_density(0.7, N)
        assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_scores_of_other_parameters_are_ignored():
    weights = random_tensors(0)
    scores = {"head.weight": torch.full((3,), -1.0), **random_tensors(1)}
    mask = build_mask(weights, rule="least-sensitive", sparsity=0.9, scores=scores)
    assert list(mask) == list(weights)
    del scores["head.weight"]
    same = build_mask(weights, rule="least-sensitive", sparsity=0.9, scores=scores)
    assert trained(mask) == trained(same)


ONE = {"w": torch.tensor([1.0, 2.0])}
NAN = {"w": torch.tensor([1.0, math.nan])}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rule": "best", "sparsity": 0.5}, "rule is 'best'; it must be one of least-sensitive,"),
        ({"rule": "least-sensitive", "sparsity": 0.5}, "scores is None"),
        ({"rule": "agreement", "sparsity": 0.5, "scores": {}}, "no entry for 'w'"),
        ({"rule": "agreement", "sparsity": 0.5, "scores": {"w": torch.zeros(3)}}, "shape"),
        (
            {"rule": "most-sensitive", "sparsity": 0.5, "scores": NAN},
            "ranks an entry of 'w' by NaN",
        ),
        (
            {"rule": "lowest-magnitude", "sparsity": 0.5, "parameters": NAN},
            "ranks an entry of 'w' by NaN",
        ),
        ({"rule": "random", "sparsity": 1.5}, "sparsity is 1.5"),
        ({"rule": "random", "sparsity": math.nan}, "sparsity is nan"),
        ({"rule": "random"}, "exactly one of the two"),
        ({"rule": "lowest-magnitude", "sparsity": 0.5, "threshold": 1.0}, "exactly one"),
        ({"rule": "random", "threshold": 0.5}, "threshold is 0.5 with the rule 'random'"),
        ({"rule": "lowest-magnitude", "threshold": math.nan}, "threshold is nan"),
        ({"rule": "random", "sparsity": 0.5, "scope": "block"}, "scope is 'block'"),
        ({"rule": "random", "sparsity": 0.5, "parameters": {}}, "empty"),
        ({"rule": "random", "sparsity": 0.5, "alive": {}}, "alive has no entry for"),
        ({"rule": "random", "sparsity": 0.5, "alive": ONE}, "is torch.float32"),
        (
            {"rule": "random", "sparsity": 0, "alive": {"w": torch.tensor([True, False])}},
            "trains 2 entries; alive has 1",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_mask(**{"parameters": ONE, **arguments})
