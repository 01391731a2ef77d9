import pytest
import torch

from engine.transport import (
    MEMORY,
    SHARED,
    TRANSPORTS,
    WIRE,
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
    assert torch.equal(unpack(record), vector)
    assert unpack(record).dtype == dtype
    assert payload_bytes(record) == vector.numel() * vector.element_size()
    release(record)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_several_vectors_travel_side_by_side(transport: str) -> None:
    record = pack_many({"a": torch.ones(3), "b": torch.zeros(2)}, transport)
    assert unpack(record, "a").tolist() == [1, 1, 1]
    assert unpack(record, "b").tolist() == [0, 0]
    release(record)


def test_memory_carries_the_vector_itself_and_the_others_a_copy() -> None:
    vector = torch.zeros(3)
    by_memory, by_wire, shared = (pack(vector, kind) for kind in (MEMORY, WIRE, SHARED))
    vector.fill_(1)
    assert unpack(by_memory) is vector
    assert not unpack(by_wire).any() and not unpack(shared).any()
    release(shared)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_was_written_to_an_outbox_is_what_is_read(transport: str) -> None:
    vector = torch.arange(5.0)
    result = torch.add(vector, 1, out=outbox(vector, transport))
    record = pack(result, transport)
    assert unpack(record).tolist() == [1, 2, 3, 4, 5]
    assert (unpack(record).data_ptr() == result.data_ptr()) == (transport != WIRE)
    release(record)
