"""A mask over a flat vector: which entries are trained, and their values packed.

Where both sides of a message know the same mask, only the trained values need to travel. A mask of
density 0.1 makes the message a tenth as long, since neither indices nor frozen values are sent.
"""

import numpy as np
import torch
from torch import Tensor


class FlatMask:
    """Which entries of a vector (N,) are trained; the indices of these are computed once, here.

    Parameters
    ----------
    mask : bool Tensor of shape (N,)
        True where the entry is trained; on the device of the vectors it is used with.

    Raises
    ------
    ValueError
        If the mask is not a boolean vector.
    """

    def __init__(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool or mask.ndim != 1:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; it must be torch.bool, (N,)"
            )
        self.mask = mask
        self._indices = mask.nonzero().view(-1)

    @classmethod
    def from_bits(cls, bits: bytes | memoryview, size: int, device: torch.device) -> "FlatMask":
        """Return the mask of N = `size` entries that `to_bits` packed.

        Raises
        ------
        ValueError
            When there are more or fewer bytes than that takes.
        """
        if len(bits) != -(-size // 8):
            raise ValueError(f"{len(bits)} bytes are not the bits of a mask of {size} entries")
        values = np.unpackbits(np.frombuffer(bits, np.uint8), count=size).astype(np.bool_)
        return cls(torch.from_numpy(values).to(device))

    def to_bits(self) -> bytes:
        """Return the mask at one bit per entry, ceil(N / 8) bytes."""
        return np.packbits(self.mask.cpu().numpy()).tobytes()

    @property
    def num_trained(self) -> int:
        """How many entries are trained."""
        return self._indices.numel()

    @property
    def density(self) -> float:
        """The trained share of the entries."""
        return self.num_trained / self.mask.numel()

    def gather(self, vector: Tensor) -> Tensor:
        """Return the trained entries of a vector (N,), packed, as a new tensor."""
        self._check(vector)
        return torch.take(vector, self._indices)

    def scatter_(self, vector: Tensor, packed: Tensor) -> None:
        """Write packed values to the trained entries of a vector (N,); others keep their bits."""
        self._check(vector)
        vector.index_copy_(0, self._indices, packed)

    def within(self, other: "FlatMask") -> "FlatMask":
        """Return this mask over the trained entries of another: what of their packing it trains.

        With it a client's own mask is applied to vectors that are packed by the global mask.
        """
        return FlatMask(other.gather(self.mask))

    def _check(self, vector: Tensor) -> None:
        if vector.shape != self.mask.shape:
            raise ValueError(
                f"the vector has shape {tuple(vector.shape)}; the mask has {tuple(self.mask.shape)}"
            )
