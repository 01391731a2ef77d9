import pytest
import torch

from engine.transport import MEMORY, WIRE, pack, payload_bytes, unpack


@pytest.mark.parametrize("transport", [WIRE, MEMORY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_a_vector_comes_out_with_the_same_bits(transport: str, dtype: torch.dtype) -> None:
    vector = (torch.arange(7) / 3).to(dtype)
    record = pack(vector, transport)
    assert torch.equal(unpack(record), vector)
    assert unpack(record).dtype == dtype
    assert payload_bytes(record) == vector.numel() * vector.element_size()


def test_memory_carries_the_vector_itself_and_the_wire_a_copy() -> None:
    vector = torch.zeros(3)
    by_memory, by_wire = pack(vector, MEMORY), pack(vector, WIRE)
    vector.fill_(1)
    assert unpack(by_memory) is vector
    assert not unpack(by_wire).any()
