"""Secure aggregation, simulated: the server sees the sum of clients' vectors, and no summand."""

from fedta_app.secure.fixed_point import (
    FEATURE_SUMS,
    FixedPoint,
    RangeError,
    fraction_bits,
)
from fedta_app.secure.protocol import FEWEST_IN_A_SUM, SecureSum, UnmaskError
from fedta_app.secure.shamir import reconstruct, split

__all__ = [
    "FEATURE_SUMS",
    "FEWEST_IN_A_SUM",
    "FixedPoint",
    "RangeError",
    "SecureSum",
    "UnmaskError",
    "fraction_bits",
    "reconstruct",
    "split",
]
