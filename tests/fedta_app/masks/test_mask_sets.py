from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.masks.sets import (
    apportion,
    density,
    expected_jaccard,
    intersection_mask,
    jaccard,
    pack_mask,
    round_density,
    select_smallest,
    union_mask,
    unpack_mask,
    vote_mask,
)

few = settings(deadline=None, max_examples=40)
SHAPES = {"a.weight": (5, 3), "b": (), "c.bias": (7,), "empty": (0, 4)}


def random_mask(seed, shapes=SHAPES, share=0.5):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) < share for name, shape in shapes.items()}


def entries(mask):
    """The mask as a plain list of booleans, by a path of its own."""
    return [bool(value) for tensor in mask.values() for value in tensor.flatten().tolist()]


def equal(mask_a, mask_b):
    return list(mask_a) == list(mask_b) and all(
        torch.equal(mask_a[n], mask_b[n]) and mask_a[n].dtype == torch.bool for n in mask_a
    )


@pytest.mark.parametrize(
    ("sparsity", "num_entries", "expected"),
    [
        (0.9, 15, 2),  # round(1.5) is even; floats make it 1.4999999999999996
        (0.9, 25, 2),  # round(2.5)
        (1 - 0.9, 5, 4),  # the density 0.9 in disguise: round(4.5), not 4.5000000000000001
        (0.99, 50, 0),  # round(0.5)
        (0.99, 150, 2),  # round(1.5)
        (0.5, 7, 4),  # round(3.5)
        (1 / 3, 3, 2),
        (0, 21_665_664, 21_665_664),
        (1, 21_665_664, 0),
        (0.9, 21_665_664, 2_166_566),
        (np.float32(0.5), 3, 2),
    ],
)
def test_round_density_is_exact(sparsity, num_entries, expected):
    assert round_density(sparsity, num_entries) == expected


@few
@given(st.integers(0, 100), st.integers(0, 10**7))
def test_round_density_of_any_percentage(percent, num_entries):
    exact = round(Fraction(percent, 100) * num_entries)
    assert round_density(1 - percent / 100, num_entries) == exact
    assert round_density((100 - percent) / 100, num_entries) == exact


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_round_density_refuses_what_is_no_share(sparsity):
    with pytest.raises(ValueError, match="sparsity is"):
        round_density(sparsity, 10)


@few
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.data())
def test_apportion_is_exact_and_within_one(weights, data):
    total = data.draw(st.integers(0, sum(weights)))
    shares = apportion(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert 0 <= share <= weight
        assert abs(share * sum(weights) - total * weight) < max(1, sum(weights))


def test_apportion_gives_what_is_left_to_the_largest_remainders_then_the_earliest():
    assert apportion(3, [10, 10, 10, 10]) == [1, 1, 1, 0]
    assert apportion(2, [1, 3, 6]) == [0, 1, 1]  # 0.2, 0.6, 1.2


numbers = st.sampled_from([-np.inf, -2.5, -0.0, 0.0, 1.0, 1e-45, 3.0, np.inf])


@few
@given(st.lists(numbers, max_size=40), st.data())
def test_select_smallest_is_a_stable_sort(values, data):
    count = data.draw(st.integers(0, len(values)))
    expected = set(sorted(range(len(values)), key=lambda i: (values[i], i))[:count])
    chosen = select_smallest(torch.tensor(values, dtype=torch.float64), count)
    assert set(chosen.nonzero()[:, 0].tolist()) == expected


@few
@given(st.lists(st.tuples(st.integers(0, 3), numbers), max_size=40), st.data())
def test_select_smallest_breaks_ties_by_the_second_vector(pairs, data):
    count = data.draw(st.integers(0, len(pairs)))
    expected = set(sorted(range(len(pairs)), key=lambda i: (pairs[i], i))[:count])
    first = torch.tensor([pair[0] for pair in pairs], dtype=torch.int32)
    second = torch.tensor([pair[1] for pair in pairs], dtype=torch.float64)
    chosen = select_smallest(first, count, second)
    assert set(chosen.nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_select_smallest_never_chooses_nan(dtype):
    values = torch.tensor([torch.nan, torch.inf, torch.nan, 1.0, torch.inf] * 50, dtype=dtype)
    assert torch.equal(select_smallest(values, 150), ~values.isnan())
    chosen = select_smallest(values, 51)
    assert chosen.nonzero()[:, 0].tolist() == [1, *range(3, 250, 5)]


def test_select_smallest_is_linear_on_falling_values():
    falling = torch.arange(2_000_000, 0, -1, dtype=torch.float32)  # quadratic: hours
    assert int(select_smallest(falling, 10).nonzero().min()) == 1_999_990


@few
@given(st.integers(0, 10**6), st.integers(0, 30))
def test_packed_bits_come_back(seed, size):
    shapes = {**SHAPES, "d": (size,)}
    mask = random_mask(seed, shapes)
    bits = pack_mask(mask)
    assert bits.dtype == np.uint8
    assert len(bits) == -(-(23 + size) // 8)
    assert equal(unpack_mask(bits, shapes), mask)


def test_bits_lie_in_flat_order():
    mask = {"b": torch.tensor([[True, False], [False, True]]), "a": torch.tensor([True] * 5)}
    assert pack_mask(mask).tolist() == [0b10011111, 0b10000000]


@few
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_union_and_intersection_are_those_of_sets(seeds):
    masks = [random_mask(seed) for seed in seeds]
    columns = list(zip(*map(entries, masks), strict=True))
    union, intersection = union_mask(iter(masks)), intersection_mask(iter(masks))
    assert entries(union) == [any(column) for column in columns]
    assert entries(intersection) == [all(column) for column in columns]
    inverted = [{name: ~tensor for name, tensor in mask.items()} for mask in masks]
    assert equal({n: ~t for n, t in union_mask(inverted).items()}, intersection)  # De Morgan
    assert equal(union_mask([union, *masks]), union)
    assert equal(masks[0], random_mask(seeds[0]))  # the inputs are untouched


@few
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6), st.integers(0, 100))
def test_vote_is_the_top_by_votes_then_score_then_position(seeds, percent):
    masks = [random_mask(seed) for seed in seeds]
    scores = {n: torch.randint(0, 3, t.shape).float() for n, t in masks[0].items()}
    votes = [sum(column) for column in zip(*map(entries, masks), strict=True)]
    ranks = [float(v) for tensor in scores.values() for v in tensor.flatten()]
    size = round_density(1 - percent / 100, len(votes))
    for given_scores, second in ((None, [0.0] * len(votes)), (scores, ranks)):
        order = sorted(range(len(votes)), key=lambda i: (-votes[i], second[i], i))
        mask = vote_mask(iter(masks), sparsity=1 - percent / 100, scores=given_scores)
        assert {i for i, trained in enumerate(entries(mask)) if trained} == set(order[:size])


def test_vote_of_equal_masks_is_that_mask():
    mask = {"w": torch.arange(100) % 10 == 3}
    assert equal(vote_mask([mask] * 3, sparsity=0.9), mask)


def test_vote_counts_beyond_a_byte_and_does_not_depend_on_the_order_of_names():
    rare = {"w": torch.tensor([True, False, False]), "v": torch.tensor([False])}
    often = {"v": torch.tensor([True]), "w": torch.tensor([False, True, False])}
    masks = [rare] * 299 + [often] * 300
    assert entries(vote_mask(masks, sparsity=0.5)) == [False, True, False, True]


@pytest.mark.parametrize(("share_a", "share_b"), [(0.1, 0.1), (0.5, 0.5), (0.1, 0.6)])
def test_jaccard_of_random_masks_is_chance(share_a, share_b):
    shapes = {"w": (300, 1000)}
    mask_a, mask_b = random_mask(1, shapes, share_a), random_mask(2, shapes, share_b)
    chance = expected_jaccard(share_a, share_b)
    assert jaccard(mask_a, mask_b) == pytest.approx(chance, rel=0.03)
    assert density(mask_a) == pytest.approx(share_a, rel=0.02)


def test_jaccard_by_hand():
    mask_a = {"w": torch.tensor([True, True, False, False]), "b": torch.tensor([True])}
    mask_b = {"b": torch.tensor([True]), "w": torch.tensor([False, True, True, False])}
    assert jaccard(mask_a, mask_b) == jaccard(mask_b, mask_a) == 2 / 4
    assert jaccard(mask_a, mask_a) == 1
    nothing = {name: torch.zeros_like(tensor) for name, tensor in mask_a.items()}
    assert jaccard(mask_a, nothing) == 0
    assert jaccard(nothing, nothing) == expected_jaccard(0, 0) == 1
    assert expected_jaccard(1, 1) == 1
    assert density(mask_a) == 0.6


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: select_smallest(torch.zeros(3), 4), "count is 4"),
        (lambda: density({}), "no entries"),
        (lambda: union_mask([]), "masks is empty"),
        (lambda: vote_mask(iter(()), sparsity=0.5), "masks is empty"),
        (lambda: union_mask([{"w": torch.zeros(2)}]), r"masks\[0\]\['w'\] is torch.float32"),
        (lambda: union_mask([random_mask(0), {}]), r"masks\[1\] has no entry for"),
        (lambda: vote_mask([{"w": torch.ones(2).bool()}, random_mask(0)], sparsity=0), "no entry"),
        (lambda: jaccard({"w": torch.ones(2).bool()}, {"w": torch.ones(3).bool()}), "shape"),
        (lambda: jaccard({}, {"w": torch.ones(3).bool()}), "no such parameter"),
        (lambda: unpack_mask(np.zeros(2, np.uint8), {"w": (17,)}), "bits is uint8"),
        (lambda: unpack_mask(np.zeros(3, np.int64), {"w": (17,)}), "bits is int64"),
        (
            lambda: vote_mask(
                [{"w": torch.ones(1).bool()}], sparsity=0, scores={"w": torch.tensor([torch.nan])}
            ),
            "scores contains NaN",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(action, sentence):
    with pytest.raises(ValueError, match=sentence):
        action()
