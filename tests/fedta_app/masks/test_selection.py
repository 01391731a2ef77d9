from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.masks.selection import apportion, round_density, select_smallest

few = settings(deadline=None, max_examples=40)


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


def test_select_smallest_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="count is 4"):
        select_smallest(torch.zeros(3), 4)
