"""Shamir's secret sharing: any t of n shares give the secret, and fewer say nothing of it.

Shamir, "How to Share a Secret", Communications of the ACM 22 (11), 1979. The secret is the value at
0 of a polynomial of degree t - 1 over a prime field, and a share its value at a holder's place.
"""

from collections.abc import Callable, Iterable, Mapping

PRIME = 2**521 - 1  # larger than any secret of 64 bytes; one of Mersenne's
SHARE_BYTES = 66


def split(
    secret: int, threshold: int, places: Iterable[int], draw: Callable[[], int]
) -> dict[int, int]:
    """Return a share of a secret for each place.

    Parameters
    ----------
    secret : int
        From 0 to below `PRIME`.
    threshold : int
        t, the number of shares that give the secret, at least 1.
    places : iterable of int
        Different numbers from 1 to below `PRIME`.
    draw : callable
        Returns a number from 0 to below `PRIME`, drawn uniformly: one coefficient.

    Raises
    ------
    ValueError
        When a place is 0, where the secret itself is, or does not fit.

    Examples
    --------
    >>> import random
    >>> shares = split(42, 2, (1, 2, 3), lambda: random.randrange(PRIME))
    >>> reconstruct({place: shares[place] for place in (1, 3)})
    42
    """
    coefficients = [secret, *(draw() for _ in range(threshold - 1))]
    found = {}
    for place in places:
        if not 1 <= place < PRIME:
            raise ValueError(f"a share at {place}; places are from 1 to below PRIME")
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * place + coefficient) % PRIME
        found[place] = value
    return found


def reconstruct(shares: Mapping[int, int]) -> int:
    """Return the secret that shares, by their places, are of: Lagrange's polynomial at 0.

    With fewer shares than the threshold it is a number that has nothing to do with the secret.
    """
    total = 0
    for place, share in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        total = (total + share * above * pow(below, -1, PRIME)) % PRIME
    return total
