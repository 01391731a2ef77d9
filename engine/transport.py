"""Vectors inside Flower messages.

A transport is a name, written into the `Array` that travels (its `stype`): whoever receives a
vector answers by the same transport.

- wire: the bytes of the vector, raw; works wherever Flower works.
- memory: the vector itself, for a server and clients in one process; nothing is copied.
"""

import warnings
from typing import cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

WIRE = "fedta.wire"
MEMORY = "fedta.memory"
_KEY = "vector"


def pack(vector: Tensor, transport: str) -> ArrayRecord:
    """Put a vector into the record that a message carries.

    By memory the record holds the vector, not a copy: it is what the vector is when it is read.
    """
    dtype = str(vector.dtype).removeprefix("torch.")
    data = b"" if transport == MEMORY else vector.detach().cpu().contiguous().numpy().tobytes()
    array = Array(dtype=dtype, shape=tuple(vector.shape), stype=transport, data=data)
    if transport == MEMORY:
        array.data = cast(bytes, vector)  # Flower's constructor insists on bytes; nobody else looks
    record = ArrayRecord()  # its constructor would copy the array
    record[_KEY] = array
    return record


def unpack(record: ArrayRecord) -> Tensor:
    """Return the vector of a record; read it, do not write to it."""
    array = record[_KEY]
    if array.stype == MEMORY:
        return cast(Tensor, array.data)
    values = np.frombuffer(array.data, dtype=np.dtype(array.dtype)).reshape(array.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def transport_of(message: Message) -> str:
    """Return the transport by which a message's vector came."""
    return message.content.array_records["arrays"][_KEY].stype


def payload_bytes(record: ArrayRecord) -> int:
    """Return the bytes of the vector in a record, by whatever transport it travels."""
    array = record[_KEY]
    return int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
