"""Intervals and tests by hand and beside scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.reporting.intervals import (
    equivalence_p,
    holm,
    interval,
    paired_test,
    smallest_detectable,
)


def test_an_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    # mean 2, standard deviation 1, t(0.975; 2) = 4.302653, by sqrt(3)
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.302653 / math.sqrt(3))
    assert found.percent() == "200.0 ± 248.4"
    assert math.isnan(interval([0.5]).half)
    assert interval([0.5]).percent() == "50.0"


def test_a_paired_test_is_scipys() -> None:
    generator = np.random.default_rng(0)
    for number in (2, 3, 10):
        one, other = generator.normal(size=(2, number))
        difference, p = paired_test(one.tolist(), other.tolist())
        expected = stats.ttest_rel(one, other)
        assert p == pytest.approx(expected.pvalue, rel=1e-9)
        low, high = expected.confidence_interval(0.95)
        assert difference.mean - difference.half == pytest.approx(low)
        assert difference.mean + difference.half == pytest.approx(high)


def test_pairs_without_spread_or_company() -> None:
    assert paired_test([0.5, 0.5], [0.5, 0.5])[1] == 1.0
    assert math.isnan(paired_test([0.75, 0.5], [0.5, 0.25])[1])
    assert math.isnan(paired_test([0.9, 0.7], [0.8, 0.6])[1])  # equal but for rounding
    assert math.isnan(paired_test([0.5], [0.4])[1])


def test_holms_correction_by_hand() -> None:
    # ascending 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never smaller than the one before
    assert holm([0.04, 0.01, 0.03, 0.02], 4) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8], 2) == [1.0, 1.0]
    with_gap = holm([0.01, math.nan, 0.04], 3)
    assert with_gap == pytest.approx([0.03, math.nan, 0.08], nan_ok=True)
    assert holm([], 0) == []


def test_comparisons_that_are_not_run_yet_count_like_the_least_convincing_ones() -> None:
    known = [0.004, 0.03]
    assert holm(known, 4) == pytest.approx(holm([*known, 1.0, 1.0], 4)[:2])


def test_equivalence_is_two_one_sided_tests() -> None:
    generator = np.random.default_rng(0)
    for number in (2, 5, 10):
        one, other = generator.normal(size=(2, number))
        for margin in (0.5, 2.0):
            differences = one - other
            low = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
            high = stats.ttest_1samp(differences, margin, alternative="less").pvalue
            found = equivalence_p(one.tolist(), other.tolist(), margin, 1000)
            assert found == pytest.approx(max(low, high), rel=1e-9)


@pytest.mark.parametrize("other", [[0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [0.505, 0.605, 0.705]])
def test_equal_differences_have_the_spread_of_one_image(other: list[float]) -> None:
    """That they agree so well may be chance, the more so the fewer images there are."""
    first = [0.5, 0.6, 0.7]
    for images in (400, 10000):
        difference = first[0] - other[0]
        one_more = [first[0] + math.copysign(1 / images, difference), *first[1:]]
        found = equivalence_p(first, other, 0.01, images)
        assert found == pytest.approx(equivalence_p(one_more, other, 0.01, images), rel=1e-6)
    assert equivalence_p(first, first, 0.01, 10000) < equivalence_p(first, first, 0.01, 400) < 0.05


def test_two_seeds_that_agree_on_few_images_are_not_enough() -> None:
    assert equivalence_p([0.96, 0.95], [0.96, 0.95], 0.01, 400) == pytest.approx(0.0452, abs=1e-4)
    assert equivalence_p([0.96, 0.95], [0.9575, 0.9475], 0.01, 400) > 0.05
    assert math.isnan(equivalence_p([0.5], [0.5], 0.01, 400))
    for pair in ([0.5, 0.6], [0.4, 0.5]):
        assert math.isnan(smallest_detectable([0.5, 0.6], pair, 1))


@pytest.mark.parametrize(("number", "family"), [(2, 1), (2, 8), (3, 4), (5, 7), (8, 12)])
def test_a_detectable_difference_is_told_four_times_in_five(number: int, family: int) -> None:
    """By experiments drawn at random, whose spread is the one that was seen."""
    seen = np.linspace(-1, 1, number)
    detectable = smallest_detectable(seen.tolist(), [0.0] * number, family)
    drawn = np.random.default_rng(number).normal(detectable, seen.std(ddof=1), (20_000, number))
    told = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05 / family
    assert told.mean() == pytest.approx(0.8, abs=0.015)
    assert math.isnan(smallest_detectable([0.5], [0.4], 1))
