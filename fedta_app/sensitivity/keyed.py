"""Uniform random numbers that depend on a seed and on the id of an example alone."""

from torch import Tensor, int64

from fedta_app.seeding import derive_seed


def keyed_uniform(sample_ids: Tensor, seed: int) -> Tensor:
    """Return numbers in [0, 1), float64 on the CPU, each a function of (seed, id) alone.

    SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) as a hash; int64 arithmetic wraps as it requires.
    """
    key = derive_seed("label", seed)
    state = _mix(sample_ids.to("cpu", int64) * _signed(0x9E3779B97F4A7C15) + key)
    return _shift(_mix(state ^ key), 11).double() * 2.0**-53


def _mix(state: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of int64 bit patterns."""
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Return a logical shift to the right of int64 bit patterns."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(pattern: int) -> int:
    """Return the int64 with the bits of a uint64."""
    return pattern - (1 << 64) if pattern >> 63 else pattern
