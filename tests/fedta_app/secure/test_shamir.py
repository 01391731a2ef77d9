"""Shamir's shares: any threshold of them gives the secret, and one fewer says nothing."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedta_app.secure.shamir import PRIME, reconstruct, split


def drawing(seed: int) -> "random.Random":
    return random.Random(seed)


@given(st.integers(0, PRIME - 1), st.integers(1, 5), st.integers(0, 3), st.integers(0, 2**32))
def test_any_threshold_of_shares_gives_the_secret(
    secret: int, threshold: int, more: int, seed: int
) -> None:
    draw = drawing(seed)
    shares = split(secret, threshold, range(1, threshold + more + 1), lambda: draw.randrange(PRIME))
    for chosen in itertools.combinations(shares, threshold):
        assert reconstruct({place: shares[place] for place in chosen}) == secret
    assert reconstruct(shares) == secret


def test_fewer_shares_fit_every_secret() -> None:
    """With t - 1 shares, each secret has exactly one polynomial: here for t = 3."""
    draw = drawing(0)
    known = {
        place: share
        for place, share in split(7, 3, (1, 2, 3), lambda: draw.randrange(PRIME)).items()
        if place < 3
    }
    for other in (0, 8, PRIME - 1):
        # The third share that would make the two known ones shares of this secret.
        below = reconstruct({**known, 3: 0})
        weight = (reconstruct({**known, 3: 1}) - below) % PRIME
        third = (other - below) * pow(weight, -1, PRIME) % PRIME
        assert reconstruct({**known, 3: third}) == other
    assert reconstruct(known) != 7


@pytest.mark.parametrize("place", [0, -1, PRIME])
def test_a_place_that_would_be_the_secret_is_refused(place: int) -> None:
    with pytest.raises(ValueError, match=f"a share at {place}"):
        split(7, 2, (1, place), lambda: 5)
