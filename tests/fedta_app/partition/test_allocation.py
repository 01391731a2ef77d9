from functools import cache
from itertools import combinations, product

import numpy as np
import pytest

from fedta_app.partition.allocation import _level_clients, allocate_shares


def _is_solution(shares: np.ndarray, counts: np.ndarray, num_clients: int, each: int) -> bool:
    sizes = shares.sum(axis=1)
    return (
        shares.shape == (num_clients, len(counts))
        and shares.min() >= 0
        and (shares.sum(axis=0) == counts).all()
        and ((shares > 0).sum(axis=1) == each).all()
        and sizes.max() - sizes.min() <= 1
    )


def _exists(counts: tuple[int, ...], num_clients: int, each: int) -> bool:
    """Try every table, client by client."""
    smallest, larger = divmod(sum(counts), num_clients)
    sizes = {smallest, smallest + (larger > 0)}

    @cache
    def fill(left: tuple[int, ...], clients: int) -> bool:
        if clients == 0:
            return not any(left)
        for held in combinations(range(len(left)), each):
            for amounts in product(*(range(1, left[c] + 1) for c in held)):
                if sum(amounts) in sizes:
                    rest = list(left)
                    for c, amount in zip(held, amounts, strict=True):
                        rest[c] -= amount
                    if fill(tuple(rest), clients - 1):
                        return True
        return False

    return fill(counts, num_clients)


def test_every_small_table_is_found_exactly_when_it_exists() -> None:
    found = refused = 0
    for num_classes, num_clients in product((1, 2, 3), (1, 2, 3, 4)):
        for counts in product((1, 2, 3, 5, 6), repeat=num_classes):
            for each in range(1, num_classes + 1):
                if each > sum(counts) // num_clients or num_clients * each < num_classes:
                    continue
                array = np.array(counts)
                shares = allocate_shares(array, num_clients, each, np.random.default_rng(0))
                if shares is None:
                    refused += 1
                    assert not _exists(counts, num_clients, each), (counts, num_clients, each)
                else:
                    found += 1
                    assert _is_solution(shares, array, num_clients, each)
    assert found > 500 and refused > 50


@pytest.mark.parametrize("num_clients", [7, 10, 33])
@pytest.mark.parametrize("each", [3, 5, 8])
def test_very_unequal_classes(num_clients: int, each: int) -> None:
    counts = np.array([40, 50, 90, 120, 200, 400, 800, 100, 1000, 60])
    shares = allocate_shares(counts, num_clients, each, np.random.default_rng(1))
    assert shares is not None and _is_solution(shares, counts, num_clients, each)


@pytest.mark.parametrize("seed", range(10))
def test_a_table_that_has_no_solution_is_followed_by_another(seed: int) -> None:
    counts = np.full(10, 60)  # 18 shares for 10 classes: only few tables can be levelled
    shares = allocate_shares(counts, 9, 2, np.random.default_rng(seed))
    assert shares is not None and _is_solution(shares, counts, 9, 2)


def _chain(*rows: tuple[int, int]) -> np.ndarray:
    """Client i holds classes i and i + 1 only, so samples pass through all clients between two."""
    shares = np.zeros((len(rows), len(rows) + 1), dtype=int)
    for i, row in enumerate(rows):
        shares[i, i : i + 2] = row
    return shares


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        (_chain((1, 9), (1, 5), (1, 5), (1, 1)), [6, 6, 6, 6]),  # too much at one end
        (_chain((1, 6), (1, 6), (1, 6), (1, 3)), [6, 6, 6, 7]),  # only too little, at the other
        (_chain((3, 1), (6, 1), (6, 1), (9, 1)), [7, 7, 7, 7]),
    ],
)
def test_rows_are_levelled_through_a_chain_of_clients(shares: np.ndarray, sizes: list[int]) -> None:
    columns, positive = shares.sum(axis=0), shares > 0
    assert _level_clients(shares, sizes[0], sizes[-1])
    assert sorted(shares.sum(axis=1)) == sizes
    assert (shares.sum(axis=0) == columns).all() and ((shares > 0) == positive).all()


def test_rows_that_no_path_connects_are_not_levelled() -> None:
    assert not _level_clients(np.array([[9, 1, 0, 0], [0, 0, 1, 1]]), 6, 6)
