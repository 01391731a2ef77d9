"""Intervals and tests over seeds: Student's t, paired, with Holm's correction.

Seeds are few, so every interval is that of Student's t with n - 1 degrees of freedom, and a
comparison is paired: a seed decides partition, sampled clients and initial weights, and two methods
with the same seed share them. Holm, "A Simple Sequentially Rejective Multiple Test Procedure",
Scandinavian Journal of Statistics 6, 1979.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_ROUNDING = 1e-9  # of differences of shares


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its interval; the half is NaN for a single value."""

    mean: float
    half: float
    number: int

    def percent(self) -> str:
        """Return it as `81.2 ± 0.4`, in percent."""
        if math.isnan(self.half):
            return f"{100 * self.mean:.1f}"
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f}"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of the values and its 95 % interval."""
    number = len(values)
    mean = float(np.mean(values))
    if number < 2:
        return Interval(mean, math.nan, number)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, number - 1))
    return Interval(mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(number), number)


def paired_test(first: Sequence[float], second: Sequence[float]) -> tuple[Interval, float]:
    """Return the interval of first - second over pairs, and the p-value of no difference.

    Equal pairs have p = 1. A single pair has no p-value, and neither have equal differences, in
    which the spread that a test needs does not show: NaN.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    found = interval(differences)
    if found.number < 2:
        return found, math.nan
    if not any(differences):
        return found, 1.0
    if np.ptp(differences) <= _ROUNDING:
        return found, math.nan
    spread = float(np.std(differences, ddof=1)) / math.sqrt(found.number)
    return found, float(2 * stats.t.sf(abs(found.mean) / spread, found.number - 1))


def holm(p_values: Sequence[float], family: int) -> list[float]:
    """Return Holm's adjusted p-values, in the order given; NaN stays NaN.

    Of the p-values in ascending order, the k-th is max over j <= k of min(1, (m - j + 1) p_j).

    Parameters
    ----------
    family : int
        The m above: comparisons that are planned, at least as many as p-values. Those without one
        count like p = 1, so that a verdict stands when they are added.
    """
    counted = sorted((p, position) for position, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(counted):
        largest = max(largest, min(1.0, (family - rank) * p))
        adjusted[position] = largest
    return adjusted
