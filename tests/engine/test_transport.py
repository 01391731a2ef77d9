import pytest
import torch
from flwr.app import Array, ArrayRecord

from engine.transport import (
    MEMORY,
    SHARED,
    TRANSPORTS,
    WIRE,
    TransportError,
    outbox,
    pack,
    pack_many,
    payload_bytes,
    release,
    unpack,
)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_a_vector_comes_out_with_the_same_bits(transport: str, dtype: torch.dtype) -> None:
    vector = (torch.arange(7) / 3).to(dtype)
    record = pack(vector, transport)
    assert torch.equal(unpack(record, transport), vector)
    assert unpack(record, transport).dtype == dtype
    assert payload_bytes(record) == vector.numel() * vector.element_size()
    release(record, transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_several_vectors_travel_side_by_side(transport: str) -> None:
    record = pack_many({"a": torch.ones(3), "b": torch.zeros(2)}, transport)
    assert unpack(record, transport, "a").tolist() == [1, 1, 1]
    assert unpack(record, transport, "b").tolist() == [0, 0]
    release(record, transport)


def test_memory_carries_the_vector_itself_and_the_others_a_copy() -> None:
    vector = torch.zeros(3)
    by_memory, by_wire, shared = (pack(vector, kind) for kind in (MEMORY, WIRE, SHARED))
    vector.fill_(1)
    assert unpack(by_memory, MEMORY) is vector
    assert not unpack(by_wire, WIRE).any() and not unpack(shared, SHARED).any()
    release(shared, SHARED)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_was_written_to_an_outbox_is_what_is_read(transport: str) -> None:
    vector = torch.arange(5.0)
    result = torch.add(vector, 1, out=outbox(vector, transport, 1))
    record = pack(result, transport)
    assert unpack(record, transport).tolist() == [1, 2, 3, 4, 5]
    assert (unpack(record, transport).data_ptr() == result.data_ptr()) == (transport != WIRE)
    release(record, transport)


# --- what a record says of itself does not choose how it is read


@pytest.mark.parametrize("agreed", TRANSPORTS)
@pytest.mark.parametrize("other", [*TRANSPORTS, "numpy.ndarray", ""])
def test_a_vector_by_another_transport_than_the_agreed_one_is_refused(
    agreed: str, other: str
) -> None:
    if other == agreed:
        return
    record = ArrayRecord()
    record["vector"] = Array(dtype="float32", shape=(1,), stype=other, data=b"\0\0\0\0")
    with pytest.raises(TransportError, match="was agreed on"):
        unpack(record, agreed)


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("float32", (2,), b"1234"),  # too few bytes
        ("float32", (1,), b"12345"),  # too many
        ("float32", (-1,), b"1234"),
        ("load", (1,), b"1234"),  # a function of torch
        ("__class__", (1,), b"1234"),
        ("float33", (1,), b"1234"),
    ],
)
def test_a_record_whose_type_shape_and_bytes_do_not_fit_is_refused(
    dtype: str, shape: tuple[int, ...], data: bytes
) -> None:
    record = ArrayRecord()
    record["vector"] = Array(dtype=dtype, shape=shape, stype=WIRE, data=data)
    with pytest.raises(TransportError, match="the vector 'vector'"):
        unpack(record, WIRE)
    with pytest.raises(TransportError, match="no vector 'other'"):
        unpack(record, WIRE, "other")
