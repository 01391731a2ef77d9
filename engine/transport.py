"""Vectors inside Flower messages.

A transport is a name, written into the `Array` that travels (its `stype`), and into the task of a
client, which answers by it.

- wire: the bytes of the vector, raw; works wherever Flower works.
- shared: a handle of memory that all processes of a machine map (`engine.shared_memory`).
- memory: the vector itself, for a server and clients in one process; nothing is copied.

What was unpacked is read, not written to, and holds until `release`.
"""

import math
import warnings
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from engine import shared_memory

WIRE = "fedta.wire"
SHARED = "fedta.shared"
MEMORY = "fedta.memory"
TRANSPORTS = (WIRE, SHARED, MEMORY)
_KEY = "vector"


def pack(vector: Tensor, transport: str) -> ArrayRecord:
    """Put a vector into the record that a message carries.

    By memory, and by shared memory where the vector came from `outbox`, the record holds the
    vector, not a copy: it is what the vector is when it is read.
    """
    return pack_many({_KEY: vector}, transport)


def pack_many(vectors: Mapping[str, Tensor], transport: str) -> ArrayRecord:
    """Put several named vectors into one record."""
    record = ArrayRecord()  # its constructor would copy the arrays
    for name, vector in vectors.items():
        record[name] = _array(vector, transport)
    return record


def outbox(vector: Tensor, transport: str) -> Tensor:
    """Return where a result of this shape is best written to, if it is to be packed next.

    That is the vector itself, or memory to share: then packing copies nothing.
    """
    if transport == SHARED and vector.device.type == "cpu":
        return shared_memory.take(tuple(vector.shape), vector.dtype)
    return vector


def _array(vector: Tensor, transport: str) -> Array:
    dtype = str(vector.dtype).removeprefix("torch.")
    data = b""
    if transport == WIRE:
        data = vector.detach().cpu().contiguous().numpy().tobytes()
    elif transport == SHARED:
        data = _share(vector.detach())
    array = Array(dtype=dtype, shape=tuple(vector.shape), stype=transport, data=data)
    if transport == MEMORY:
        array.data = cast(bytes, vector)  # Flower's constructor insists on bytes; nobody else looks
    return array


def _share(vector: Tensor) -> bytes:
    handle = shared_memory.handle(vector)
    if handle is None:
        copy = shared_memory.take(tuple(vector.shape), vector.dtype).copy_(vector)
        handle = shared_memory.handle(copy)
    assert handle is not None
    return handle


def unpack(record: ArrayRecord, name: str = _KEY) -> Tensor:
    """Return a vector of a record; read it, do not write to it.

    Raises
    ------
    engine.shared_memory.SharingError
        If it lies in memory that this process does not share.
    """
    array = record[name]
    if array.stype == MEMORY:
        return cast(Tensor, array.data)
    if array.stype == SHARED:
        return shared_memory.read(array.data, tuple(array.shape), getattr(torch, array.dtype))
    values = np.frombuffer(array.data, dtype=np.dtype(array.dtype)).reshape(array.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def unpack_many(record: ArrayRecord) -> dict[str, Tensor]:
    """Return all vectors of a record, as `unpack` does."""
    return {name: unpack(record, name) for name in record}


def release(record: ArrayRecord) -> None:
    """Give back the memory of a record whose vectors were read for the last time."""
    for array in record.values():
        if array.stype == SHARED:
            shared_memory.release(array.data)


def payload_bytes(record: ArrayRecord) -> int:
    """Return the bytes of the vectors in a record, by whatever transport they travel."""
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in record.values())
