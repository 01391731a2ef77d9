"""Matrices between clients, by hand and against naive loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedta_app.analysis import cosine_matrix, mask_overlap_matrix, sign_conflict_matrix

few = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)


def vector(*values: float) -> Tensor:
    return torch.tensor(values)


def random_vectors(seed: int, number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(number, 36, generator=generator)
    return list(values * (torch.rand(number, 36, generator=generator) < 0.7))


def test_cosines_by_hand() -> None:
    vectors = [vector(3.0, 4.0), vector(-6.0, -8.0), vector(4.0, -3.0), vector(1.0, 0.0)]
    expected = [[1, -1, 0, 0.6], [-1, 1, 0, -0.6], [0, 0, 1, 0.8], [0.6, -0.6, 0.8, 1]]
    torch.testing.assert_close(cosine_matrix(vectors), torch.tensor(expected).double())


def test_a_zero_vector_has_no_direction() -> None:
    matrix = cosine_matrix([vector(1.0, 1.0), vector(0.0, 0.0)])
    assert matrix.isnan().tolist() == [[False, True], [True, True]]


@few
@given(seed=seeds)
def test_cosines_equal_the_loop(seed: int) -> None:
    vectors = random_vectors(seed, 4)
    matrix, rows = cosine_matrix(vectors), [task.tolist() for task in vectors]
    for i, first in enumerate(rows):
        for j, second in enumerate(rows):
            dot = math.fsum(x * y for x, y in zip(first, second, strict=True))
            expected = dot / (math.hypot(*first) * math.hypot(*second))
            assert matrix[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_sign_conflicts_by_hand() -> None:
    vectors = [vector(1.0, 1.0, 1.0, 0.0), vector(2.0, -1.0, 0.0, 5.0), vector(0.0, 0.0, 0.0, 1.0)]
    matrix = sign_conflict_matrix(vectors)
    assert matrix[0].tolist()[:2] == [0.0, 0.5]  # two in common, one differs
    assert matrix[0, 2].isnan()  # nothing in common
    assert matrix[1, 2].item() == 0.0
    assert torch.equal(matrix.nan_to_num(9.0), matrix.T.nan_to_num(9.0))


@few
@given(seed=seeds)
def test_sign_conflicts_equal_the_loop(seed: int) -> None:
    vectors = random_vectors(seed, 3)
    matrix = sign_conflict_matrix(vectors)
    rows = [task.tolist() for task in vectors]
    for i, first in enumerate(rows):
        for j, second in enumerate(rows):
            products = [x * y for x, y in zip(first, second, strict=True) if x and y]
            assert matrix[i, j] == sum(product < 0 for product in products) / len(products)


def test_blocks_of_columns_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = random_vectors(1, 4)
    cosines, conflicts = cosine_matrix(vectors), sign_conflict_matrix(vectors)
    monkeypatch.setattr("fedta_app.analysis.matrices._COLUMNS", 4)
    torch.testing.assert_close(cosine_matrix(vectors), cosines)
    torch.testing.assert_close(sign_conflict_matrix(vectors), conflicts)


def test_mask_overlap_by_hand() -> None:
    masks = [
        torch.tensor([True, True, False, False]),
        torch.tensor([True, False, True, True]),
        torch.tensor([False, False, False, False]),
    ]
    overlap = mask_overlap_matrix(masks[:2])
    assert overlap.jaccard.tolist() == [[1.0, 0.25], [0.25, 1.0]]
    product = 0.5 * 0.75
    assert overlap.chance == pytest.approx(product / (0.5 + 0.75 - product))
    none = mask_overlap_matrix(masks)
    assert none.jaccard[0, 2].item() == 0.0
    assert none.jaccard[2, 2].isnan()
    assert math.isnan(mask_overlap_matrix(masks[:1]).chance)


def test_random_masks_overlap_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(200_000, generator=generator) < 0.1 for _ in range(3)]
    overlap = mask_overlap_matrix(masks)
    assert overlap.chance == pytest.approx(0.1 / 1.9, rel=0.02)
    assert overlap.jaccard[0, 1].item() == pytest.approx(overlap.chance, rel=0.05)


@pytest.mark.parametrize("matrix", [cosine_matrix, sign_conflict_matrix, mask_overlap_matrix])
def test_vectors_that_do_not_fit_are_refused(matrix) -> None:
    with pytest.raises(ValueError, match=r"a vector has shape \(3,\); all must have \(2,\)"):
        matrix([vector(1.0, 2.0), vector(1.0, 2.0, 3.0)])
    with pytest.raises(ValueError, match="all must have"):
        matrix([torch.ones(2, 2)])
    with pytest.raises(ValueError, match="at least one"):
        matrix([])
