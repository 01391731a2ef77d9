"""Trained values packed into one vector: what travels when both sides know the same mask.

A mask of density 0.1 makes a message a tenth as long, since neither indices nor frozen values are
sent. Order: the names as the mask has them, then position; sender and receiver need masks of the
same order. Only the mask's names are packed; every other tensor stays behind, never touched.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedta_app.vectors.arithmetic import stepped


class Packing:
    """The packed form of one mask; make it once per mask, its indices are computed here.

    Parameters
    ----------
    mask : Mapping[str, Tensor]
        Bool tensors, True = trained. Missing names are not packed: give a tensor that travels
        whole an all-True entry.

    Attributes
    ----------
    size : int
        Number of packed values: the trained entries of the mask.

    Raises
    ------
    ValueError
        If an entry of the mask is not a bool tensor.
    """

    def __init__(self, mask: Mapping[str, Tensor]) -> None:
        self._shapes: dict[str, torch.Size] = {}
        self._indices: dict[str, Tensor] = {}
        for name, entry in mask.items():
            if entry.dtype != torch.bool:
                raise ValueError(f"mask[{name!r}] is {entry.dtype}; it must be torch.bool")
            self._shapes[name] = entry.shape
            self._indices[name] = entry.reshape(-1).nonzero().reshape(-1)
        self.size = sum(index.numel() for index in self._indices.values())

    @torch.no_grad()
    def gather(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a new 1-D tensor of the trained values, ``size`` long, in the tensors' dtype.

        Raises
        ------
        ValueError
            If a name of the mask is missing, or shapes or dtypes disagree.
        """
        self._check(tensors)
        like = next((tensors[name] for name in self._indices), torch.empty(0))
        packed = like.new_empty(self.size)
        for name, index, part in self._parts(packed):
            torch.take(tensors[name], index, out=part)
        return packed

    @torch.no_grad()
    def scatter_(self, tensors: Mapping[str, Tensor], packed: Tensor) -> None:
        """Write the packed values in place over the trained entries; no other entry is touched.

        Raises
        ------
        ValueError
            If a name of the mask is missing, or shapes, dtypes or the packed length disagree.
        """
        self._check(tensors, packed)
        for name, index, part in self._parts(packed):
            _write(tensors[name], index, part)

    @torch.no_grad()
    def add_(self, tensors: Mapping[str, Tensor], packed: Tensor, alpha: float = 1.0) -> None:
        """Add alpha times the packed update in place to the trained entries.

        A zero update leaves the entry's bits, as :func:`fedta_app.aggregation.apply_update` does.

        Raises
        ------
        ValueError
            If a name of the mask is missing, or shapes, dtypes or the packed length disagree.
        """
        self._check(tensors, packed)
        for name, index, part in self._parts(packed):
            _write(tensors[name], index, stepped(torch.take(tensors[name], index), part, alpha))

    def _parts(self, packed: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        sizes = [index.numel() for index in self._indices.values()]
        for (name, index), part in zip(
            self._indices.items(), torch.split(packed, sizes), strict=True
        ):
            if index.numel():
                yield name, index, part

    def _check(self, tensors: Mapping[str, Tensor], packed: Tensor | None = None) -> None:
        if packed is not None and packed.shape != (self.size,):
            raise ValueError(f"packed has shape {tuple(packed.shape)}; it must be ({self.size},)")
        dtypes = set() if packed is None else {packed.dtype}
        for name, shape in self._shapes.items():
            if name not in tensors:
                raise ValueError(f"tensors lack {name!r}; every name of the mask must be present")
            if tensors[name].shape != shape:
                raise ValueError(
                    f"tensors[{name!r}] has shape {tuple(tensors[name].shape)}; "
                    f"its mask has {tuple(shape)}"
                )
            dtypes.add(tensors[name].dtype)
        if len(dtypes) > 1:
            raise ValueError(f"packed values have dtypes {dtypes}; they must share one")


def _write(target: Tensor, index: Tensor, values: Tensor) -> None:
    flat = target.reshape(-1)
    flat.index_copy_(0, index, values)
    if not target.is_contiguous():  # reshape copied: a channels-last weight, say
        target.copy_(flat.view(target.shape))


def pack(tensors: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
    """Return the trained values as one vector; see :meth:`Packing.gather`."""
    return Packing(mask).gather(tensors)


def unpack_into(target: Mapping[str, Tensor], packed: Tensor, mask: Mapping[str, Tensor]) -> None:
    """Write packed values in place over the trained entries; see :meth:`Packing.scatter_`."""
    Packing(mask).scatter_(target, packed)


def packed_size(mask: Mapping[str, Tensor]) -> int:
    """Return how many values the mask lets travel: its trained entries."""
    return sum(int(entry.sum()) for entry in mask.values())
