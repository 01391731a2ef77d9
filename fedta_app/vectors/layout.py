"""The order in which the entries of named tensors lie in one flat vector."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """The entries of one tensor within a vector of many: how many, and the tensor's dimensions."""

    size: int
    dims: int


@dataclass(frozen=True)
class Layout:
    """Names and shapes of tensors, whose entries lie one after another in a vector (N,).

    Attributes
    ----------
    names : tuple of str
        In the order of the vector; within a tensor the entries are in row order.
    shapes : tuple of tuple of int
        One per name.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        """Return the layout of the tensors in the order of the mapping."""
        return cls(tuple(tensors), tuple(tuple(tensor.shape) for tensor in tensors.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of entries of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """The number N of all entries."""
        return sum(self.sizes)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of names and shapes: who agrees on it agrees on the place of every entry."""
        text = "\n".join(f"{n} {s}" for n, s in zip(self.names, self.shapes, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    def segments(self, mask: Tensor | None = None) -> tuple[Segment, ...]:
        """Return the tensors' segments of a vector (N,), or of its entries under a mask (N,).

        Examples
        --------
        >>> layout = Layout(("weight", "bias"), ((2, 2), (2,)))
        >>> layout.segments(torch.tensor([True, False, True, True, False, False]))
        (Segment(size=3, dims=2), Segment(size=0, dims=1))
        """
        sizes = self.sizes
        if mask is not None:
            sizes = tuple(int(piece.sum()) for piece in mask.split(self.sizes))
        return tuple(
            Segment(size, len(shape)) for size, shape in zip(sizes, self.shapes, strict=True)
        )

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the tensors by name, as views of a vector (N,)."""
        pieces = vector.split(self.sizes)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }

    def flatten(
        self,
        named: Mapping[str, Tensor],
        argument: str = "tensors",
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return a copy of the named tensors as one vector (N,).

        Parameters
        ----------
        named : Mapping[str, Tensor]
            In any order; names that the layout lacks are ignored.
        argument : str
            What error messages call `named`.
        device : torch.device or str, optional
            Where the vector is made; by default where the tensors are.

        Raises
        ------
        ValueError
            If the layout is empty, a name is missing, or a tensor has another shape.
        """
        if not self.names:
            raise ValueError(f"{argument} is empty; it must name at least one parameter.")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in named:
                raise ValueError(f"{argument} has no entry for {name!r}; it must have one.")
            if named[name].shape != shape:
                raise ValueError(
                    f"{argument}[{name!r}] has shape {tuple(named[name].shape)}; "
                    f"it must have the shape {shape}."
                )
        return torch.cat([named[name].detach().reshape(-1).to(device) for name in self.names])
