"""A mask over a flat vector of weights: which entries are trained, packed, and as bits."""

import numpy as np
import torch
from torch import Tensor

from fedta_app.masks.sets import flatten
from fedta_app.vectors.flat import FlatWeights
from fedta_app.vectors.packing import Packing


class FlatMask:
    """True where an entry of the vector is trained.

    Parameters
    ----------
    mask : bool Tensor of shape (N,)
        On the device of the vectors it is used with.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._packing = Packing({"vector": mask})

    @classmethod
    def of(cls, mask: dict[str, Tensor], weights: FlatWeights) -> "FlatMask":
        """Return the mask of named tensors in the order in which the weights lie."""
        return cls(flatten(mask, weights.names).to(weights.vector.device))

    @classmethod
    def from_bits(cls, bits: bytes, size: int, device: torch.device) -> "FlatMask":
        """Return the mask of N = `size` entries that `to_bits` packed."""
        values = np.unpackbits(np.frombuffer(bits, np.uint8), count=size).astype(np.bool_)
        return cls(torch.from_numpy(values).to(device))

    def to_bits(self) -> bytes:
        """Return the mask at one bit per entry, ceil(N / 8) bytes."""
        return np.packbits(self.mask.cpu().numpy()).tobytes()

    @property
    def num_trained(self) -> int:
        """How many entries are trained."""
        return self._packing.size

    @property
    def density(self) -> float:
        """The trained share of the entries."""
        return self.num_trained / self.mask.numel()

    def gather(self, vector: Tensor) -> Tensor:
        """Return the trained entries of a vector (N,), packed, as a new tensor."""
        return self._packing.gather({"vector": vector})

    def scatter_(self, vector: Tensor, packed: Tensor) -> None:
        """Write packed values to the trained entries of a vector (N,); others keep their bits."""
        self._packing.scatter_({"vector": vector}, packed)

    def add_(self, vector: Tensor, packed: Tensor, scale: float) -> None:
        """Add a scaled packed update to the trained entries; others keep their bits."""
        self._packing.add_({"vector": vector}, packed, scale)
