"""Vectors inside Flower messages.

A transport is a name, written into the `Array` that travels (its `stype`), and into the task of a
client, which answers by it.

- wire: the bytes of the vector, raw; works wherever Flower works.
- memory: the vector itself, for a server and clients in one process; nothing is copied.
"""

import math
import warnings
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

WIRE = "fedta.wire"
MEMORY = "fedta.memory"
_KEY = "vector"


def pack(vector: Tensor, transport: str) -> ArrayRecord:
    """Put a vector into the record that a message carries.

    By memory the record holds the vector, not a copy: it is what the vector is when it is read.
    """
    return pack_many({_KEY: vector}, transport)


def pack_many(vectors: Mapping[str, Tensor], transport: str) -> ArrayRecord:
    """Put several named vectors into one record."""
    record = ArrayRecord()  # its constructor would copy the arrays
    for name, vector in vectors.items():
        record[name] = _array(vector, transport)
    return record


def _array(vector: Tensor, transport: str) -> Array:
    dtype = str(vector.dtype).removeprefix("torch.")
    data = b"" if transport == MEMORY else vector.detach().cpu().contiguous().numpy().tobytes()
    array = Array(dtype=dtype, shape=tuple(vector.shape), stype=transport, data=data)
    if transport == MEMORY:
        array.data = cast(bytes, vector)  # Flower's constructor insists on bytes; nobody else looks
    return array


def unpack(record: ArrayRecord, name: str = _KEY) -> Tensor:
    """Return a vector of a record; read it, do not write to it."""
    array = record[name]
    if array.stype == MEMORY:
        return cast(Tensor, array.data)
    values = np.frombuffer(array.data, dtype=np.dtype(array.dtype)).reshape(array.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def payload_bytes(record: ArrayRecord) -> int:
    """Return the bytes of the vectors in a record, by whatever transport they travel."""
    return sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in record.values())
