"""Numbers as integers modulo 2**32 or 2**64, whose sums are exact in any order."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_DTYPES = {32: torch.int32, 64: torch.int64}


class RangeError(ValueError):
    """A number that is too large for the integers; the message is one sentence."""


@dataclass(frozen=True)
class FixedPoint:
    """A number x as the integer x * 2**fraction, rounded; integers wrap around modulo 2**bits.

    A sum is right as long as its own absolute value is below 2**(bits - 1 - fraction), whatever
    its summands and their masks add up to on the way.

    Parameters
    ----------
    bits : int
        32 or 64.
    fraction : int
        Bits behind the point; below 0 for multiples of a power of two.
    """

    bits: int
    fraction: int

    @property
    def dtype(self) -> torch.dtype:
        """The type of the integers."""
        return _DTYPES[self.bits]

    def encode(self, values: Tensor, generator: torch.Generator, summands: int = 1) -> Tensor:
        """Return values as integers, rounded up or down at random so that the mean is right.

        Parameters
        ----------
        values : floating Tensor
            On the CPU.
        generator : torch.Generator
            Of the rounding.
        summands : int
            How many such tensors the sum has at most.

        Raises
        ------
        RangeError
            When a value is so large that the sum of so many might not fit.
        """
        values = values.double()
        scaled = torch.ldexp(values, torch.tensor(self.fraction))
        most = (2.0 ** (self.bits - 1) - 1) / summands - 1  # rounding adds up to 1
        if scaled.numel() and not float(scaled.abs().max()) <= most:
            raise RangeError(
                f"a number of {float(values.abs().max()):g} in a secure sum of {summands}, whose "
                f"summands are at most {math.ldexp(most, -self.fraction):g}"
            )
        drawn = torch.rand(scaled.shape, generator=generator, dtype=torch.float64)
        return scaled.add_(drawn).floor_().to(self.dtype)

    def decode(self, total: Tensor) -> Tensor:
        """Return the float64 numbers that a sum of integers stands for."""
        return torch.ldexp(total.double(), torch.tensor(-self.fraction))


FEATURE_SUMS = FixedPoint(64, 32)  # those of a client are below 2e9 / clients


def fraction_bits(bits: int, largest: float, summands: int) -> int:
    """Return the bits behind the point for sums of so many numbers up to this size.

    Examples
    --------
    >>> fraction_bits(32, largest=0.5, summands=8)
    28
    """
    # Rounding may add 1 to each summand.
    return math.floor(math.log2((2 ** (bits - 1) - 1 - summands) / (largest * summands)))
