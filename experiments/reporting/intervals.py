"""Intervals, tests of difference and of equivalence over seeds: Student's t, paired, with Holm.

Seeds are few, so every interval is that of Student's t with n - 1 degrees of freedom, and a
comparison is paired: a seed decides partition, sampled clients and initial weights, and two methods
with the same seed share them. Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
Scandinavian Journal of Statistics 6, 1979. That two methods are equal is never shown by a large
p-value, but by two one-sided tests within a margin that was stated before: Schuirmann, "A
Comparison of the Two One-Sided Tests Procedure and the Power Approach", Journal of
Pharmacokinetics and Biopharmaceutics 15, 1987.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8  # the chance with which a difference that is called detectable is told
_ROUNDING = 1e-9  # of differences of shares


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its interval, which is NaN for a single value."""

    mean: float
    half: float

    def percent(self) -> str:
        """Return it as `81.2 ± 0.4`, in percent."""
        if math.isnan(self.half):
            return f"{100 * self.mean:.1f}"
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f}"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of the values and its 95 % interval.

    Examples
    --------
    >>> interval([0.80, 0.82, 0.84]).percent()
    '82.0 ± 5.0'
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, math.nan)
    # The half width itself: `stats.t.interval` has none for values that are all equal.
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return Interval(mean, float(quantile * stats.sem(values)))


def paired_test(first: Sequence[float], second: Sequence[float]) -> tuple[Interval, float]:
    """Return the interval of first - second over pairs, and the p-value of no difference.

    Equal pairs have p = 1. A single pair has no p-value, and neither have equal differences, in
    which the spread that a test needs does not show: NaN.
    """
    differences = np.subtract(first, second)
    found = interval(differences.tolist())
    if len(differences) > 1 and not differences.any():
        return found, 1.0
    if np.ptp(differences) <= _ROUNDING:
        return found, math.nan
    return found, float(stats.ttest_rel(first, second).pvalue)


def equivalence_p(
    first: Sequence[float], second: Sequence[float], margin: float, images: int
) -> float:
    """Return the p-value of |mean of first - second| >= margin: small where both are equivalent.

    It is the larger of two one-sided paired t-tests (Schuirmann). A single pair has none: NaN. In
    equal differences the spread that the tests need does not show, because an accuracy is a
    multiple of one image: there it is taken to be that of one image more in one of the pairs.

    Parameters
    ----------
    first, second : sequence of float
        Accuracies, in pairs.
    margin : float
        The difference that matters.
    images : int
        That each accuracy is a share of.

    Examples
    --------
    >>> round(equivalence_p([0.80, 0.81, 0.82], [0.80, 0.812, 0.819], 0.01, images=1000), 4)
    0.0041
    """
    differences = np.subtract(first, second)
    number = len(differences)
    if number < 2:
        return math.nan
    if np.ptp(differences) <= _ROUNDING:
        differences[0] += math.copysign(1 / images, differences[0])
    mean = float(differences.mean())
    distance = (margin - abs(mean)) / float(stats.sem(differences))
    return float(stats.t.sf(distance, number - 1))


def smallest_detectable(first: Sequence[float], second: Sequence[float], family: int) -> float:
    """Return the true difference that the paired test would tell in four of five experiments.

    At the spread that the differences have, and as the first of its family: with a p-value below
    5 % over the size of the family (Holm's first step). NaN for fewer than two pairs, and for equal
    differences.

    Source: the power of the t-test, by the noncentral t distribution (Cohen, 1988, chapter 2).

    Examples
    --------
    >>> round(smallest_detectable([0.80, 0.81, 0.82], [0.80, 0.82, 0.81], family=1), 3)
    0.033
    """
    differences = np.subtract(first, second)
    freedom = len(differences) - 1
    if freedom < 1 or np.ptp(differences) <= _ROUNDING:
        return math.nan
    limit = float(stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * family), freedom))

    def lacking(errors: float) -> float:  # of a difference in standard errors
        return float(stats.nct.sf(limit, freedom, errors)) - POWER  # the other tail is empty here

    return float(optimize.brentq(lacking, 0, 2 * limit + 5) * stats.sem(differences))


def holm(p_values: Sequence[float], family: int) -> list[float]:
    """Return Holm's adjusted p-values, in the order given; NaN stays NaN.

    Of the p-values in ascending order, the k-th is max over j <= k of min(1, (m - j + 1) p_j).

    Parameters
    ----------
    family : int
        The m above: comparisons that are planned, at least as many as p-values. Those without one
        count like p = 1, so that a verdict stands when they are added.

    Examples
    --------
    >>> holm([0.04, 0.01], family=3)
    [0.08, 0.03]
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values)  # NaN goes last
    steps = np.minimum(1.0, (family - np.arange(len(values))) * values[order])
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps)
    return [float(p) for p in adjusted]
