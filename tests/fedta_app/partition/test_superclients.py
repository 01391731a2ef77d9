"""Superclients against hand-computed examples, and what holds of all of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.partition.schemes import class_counts, partition
from fedta_app.partition.superclients import divergences, group_clients


def test_one_class_clients_meet_those_of_other_classes() -> None:
    """Where a class is absent, 0 log 0 is 0; the first client that is left does not always win."""
    one_class = np.array([[4, 0, 0], [4, 0, 0], [0, 4, 0], [0, 4, 0], [0, 0, 4], [0, 0, 4]])
    assert group_clients(one_class, 3) == [[0, 2, 4], [1, 3, 5]]
    assert group_clients(one_class, 2) == [[0, 2], [1, 3], [4, 5]]
    assert group_clients(one_class, 4) == [[0, 1, 2, 4], [3, 5]]


def test_the_greedy_choice_by_hand() -> None:
    counts = np.array([[6, 0, 0], [3, 3, 0], [0, 0, 6], [0, 3, 3]])
    overall = np.array([9, 6, 9]) / 24
    # With client 0: 1 gives (9, 3, 0) / 12, 2 gives (6, 0, 6) / 12, 3 gives (6, 3, 3) / 12.
    together = counts[0] + counts[1:]
    expected = [
        0.75 * math.log(2),
        math.log(4 / 3),
        0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3),
    ]
    assert divergences(together, overall) == pytest.approx(expected)
    assert group_clients(counts, 2) == [[0, 3], [1, 2]]


def test_unequal_sizes_count_by_images() -> None:
    """Client 1 has too few images to make up for client 0's; client 2 has as many."""
    counts = np.array([[100, 0], [0, 1], [0, 100], [1, 0]])
    assert group_clients(counts, 2)[0] == [0, 2]


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(
        st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), min_size=1, max_size=12
    ),
    most=st.integers(1, 14),
)
def test_every_client_is_in_one_superclient(counts: list[list[int]], most: int) -> None:
    groups = group_clients(np.array(counts), most)
    assert sorted(client for group in groups for client in group) == list(range(len(counts)))
    assert [len(group) for group in groups[:-1]] == [most] * (len(groups) - 1)
    assert 1 <= len(groups[-1]) <= most


def test_superclients_are_closer_to_all_than_groups_at_random() -> None:
    labels = np.repeat(np.arange(10), 60)
    parts = partition(labels, 50, scheme="dirichlet", alpha=0.2)
    counts = class_counts(labels, parts, 10)
    overall = counts.sum(0) / counts.sum()

    def mean(groups: list[list[int]]) -> float:
        return float(divergences(np.stack([counts[g].sum(0) for g in groups]), overall).mean())

    random = [list(range(first, first + 5)) for first in range(0, 50, 5)]
    assert mean(group_clients(counts, 5)) < 0.75 * mean(random)
