"""Uniform random numbers that depend on a seed and the id of an example only."""

from torch import Tensor, int64

from fedta_app.seeding import derive_seed


def keyed_uniform(sample_ids: Tensor, seed: int) -> Tensor:
    """Return float64 numbers in [0, 1) on the CPU, one for each id.

    The seed and the id are hashed by SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), modulo 2^64.
    """
    key = derive_seed("label", seed)
    state = _mix(sample_ids.to("cpu", int64) * _signed(0x9E3779B97F4A7C15) + key)
    return _shift(_mix(state ^ key), 11).double() * 2.0**-53


def _mix(state: Tensor) -> Tensor:
    """Return the finaliser of SplitMix64, on uint64 bit patterns stored as int64."""
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Return the bit patterns shifted to the right, with zeros from the left."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(pattern: int) -> int:
    """Return the int64 that has the bits of a uint64."""
    return pattern - (1 << 64) if pattern >> 63 else pattern
