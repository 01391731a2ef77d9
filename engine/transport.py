"""Vectors inside Flower messages.

The name of the transport stands in each `Array` that travels (its `stype`), and in the message's
configuration: a client replies by the same transport.

- wire: the raw bytes of the vector; works wherever Flower works.
- shared: a handle of memory that all processes of a machine map (`engine.shared_memory`).
- memory: the vector itself, without a copy, for a server and clients in one process.

An unpacked vector must not be written to, and is valid until `release`.
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
_NAMES = ("float32", "float64", "uint8", "int32", "int64", "bool")
_DTYPES = {name: getattr(torch, name) for name in _NAMES}
_KEY = "vector"
_MOST_DIMENSIONS, _MOST_VALUES = 8, 2**40


def pack(vector: Tensor, transport: str) -> ArrayRecord:
    """Return the record by which a message carries a vector.

    With the memory transport, and with shared memory if the vector came from `outbox`, the record
    refers to the vector itself, so that later changes of the vector are seen by the reader.
    """
    return pack_many({_KEY: vector}, transport)


def pack_many(vectors: Mapping[str, Tensor], transport: str, number: int = 0) -> ArrayRecord:
    """Return one record that carries several named vectors, in reply to a round of this number."""
    record = ArrayRecord()  # its constructor would copy the arrays
    for name, vector in vectors.items():
        record[name] = _array(vector, transport, number)
    return record


def outbox(vector: Tensor, transport: str, number: int) -> Tensor:
    """Return a tensor of this shape to write a reply to, such that `pack_many` need not copy it.

    That is a shared buffer where the transport needs one, or else the vector itself.
    """
    if transport == SHARED and vector.device.type == "cpu":
        return shared_memory.take(tuple(vector.shape), vector.dtype, number)
    return vector


def _array(vector: Tensor, transport: str, number: int) -> Array:
    dtype = str(vector.dtype).removeprefix("torch.")
    data = b""
    if transport == WIRE:
        data = vector.detach().cpu().contiguous().numpy().tobytes()
    elif transport == SHARED:
        data = _share(vector.detach(), number)
    array = Array(dtype=dtype, shape=tuple(vector.shape), stype=transport, data=data)
    if transport == MEMORY:
        array.data = cast(bytes, vector)  # only Flower's constructor requires bytes
    return array


def _share(vector: Tensor, number: int) -> bytes:
    handle = shared_memory.handle(vector)
    if handle is None:
        copy = shared_memory.take(tuple(vector.shape), vector.dtype, number).copy_(vector)
        handle = shared_memory.handle(copy)
    assert handle is not None
    return handle


class TransportError(ValueError):
    """A record that is not what the two sides agreed on; the message is one sentence."""


def unpack(record: ArrayRecord, transport: str, name: str = _KEY) -> Tensor:
    """Return a vector of a record; it must not be written to.

    Parameters
    ----------
    transport : str
        The one that was agreed on with the sender. What a record says of itself does not choose
        how it is read: a handle of shared memory in a reply by wire would name any file.

    Raises
    ------
    TransportError
        If the record has no such vector, or it travels by another transport, or its type, shape
        and bytes do not fit together.
    engine.shared_memory.SharingError
        If it lies in memory that this process cannot map.
    """
    if name not in record:
        raise TransportError(f"the message has no vector {name!r}")
    array = record[name]
    if array.stype != transport:
        raise TransportError(
            f"the vector {name!r} came by {array.stype!r}, where {transport!r} was agreed on"
        )
    if transport == MEMORY:
        if not isinstance(array.data, Tensor):
            raise TransportError(f"the vector {name!r} is a {type(array.data).__name__}")
        return array.data
    dtype, shape = _DTYPES.get(array.dtype), tuple(array.shape)
    if dtype is None or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise TransportError(f"the vector {name!r} is {array.dtype!r} of shape {shape}")
    # Also of an array without a byte, which is empty whatever its other dimensions are.
    if math.prod(size or 1 for size in shape) > _MOST_VALUES or len(shape) > _MOST_DIMENSIONS:
        raise TransportError(f"the vector {name!r} has {len(shape)} dimensions, or is too large")
    if transport == SHARED:
        return shared_memory.read(array.data, shape, dtype)
    if len(array.data) != math.prod(shape) * dtype.itemsize:
        raise TransportError(f"the vector {name!r} has {len(array.data)} bytes for {shape} {dtype}")
    values = np.frombuffer(array.data, dtype=array.dtype).reshape(shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def unpack_many(record: ArrayRecord, transport: str) -> dict[str, Tensor]:
    """Return all vectors of a record, as `unpack` does."""
    return {name: unpack(record, transport, name) for name in record}


def release(record: ArrayRecord, transport: str) -> None:
    """Free the memory of a record whose vectors are no longer needed."""
    if transport == SHARED:
        for array in record.values():
            shared_memory.release(array.data)


def payload_bytes(record: ArrayRecord) -> int:
    """Return the size in bytes of the vectors in a record, independent of the transport."""
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in record.values())
