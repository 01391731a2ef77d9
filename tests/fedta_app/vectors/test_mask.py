"""The packed form: order, round trip, and that nothing outside the mask is touched."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedta_app.vectors import FlatMask

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 40)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16])
CPU = torch.device("cpu")


def draw(seed: int, size: int, density: float = 0.5) -> tuple[Tensor, FlatMask]:
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(size, generator=generator)
    return vector, FlatMask(torch.rand(size, generator=generator) < density)


@few
@given(seeds, sizes, dtypes, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_round_trip(seed: int, size: int, dtype: torch.dtype, density: float) -> None:
    vector, mask = draw(seed, size, density)
    vector, target = vector.to(dtype), draw(seed + 1, size)[0].to(dtype)
    before = target.clone()
    packed = mask.gather(vector)
    pairs = zip(vector.tolist(), mask.mask.tolist(), strict=True)
    assert packed.tolist() == [value for value, trained in pairs if trained]
    assert packed.dtype == dtype
    assert packed.shape == (mask.num_trained,)
    mask.scatter_(target, packed)
    assert torch.equal(target, torch.where(mask.mask, vector, before))
    packed.fill_(5.0)
    assert torch.equal(target, torch.where(mask.mask, vector, before))


@few
@given(seeds, sizes)
def test_within_is_the_same_choice_on_packed_vectors(seed: int, size: int) -> None:
    vector, all_that_travels = draw(seed, size, 0.7)
    own = FlatMask(all_that_travels.mask & draw(seed + 1, size)[1].mask)
    part = own.within(all_that_travels)
    assert part.mask.shape == (all_that_travels.num_trained,)
    assert torch.equal(part.gather(all_that_travels.gather(vector)), own.gather(vector))


@few
@given(seeds, sizes)
def test_bits_come_back(seed: int, size: int) -> None:
    _, mask = draw(seed, size)
    bits = mask.to_bits()
    assert len(bits) == -(-size // 8)
    assert torch.equal(FlatMask.from_bits(bits, size, CPU).mask, mask.mask)


def test_bits_lie_in_flat_order() -> None:
    mask = FlatMask(torch.tensor([True, False, False, True, True, True, True, True, True]))
    assert list(mask.to_bits()) == [0b10011111, 0b10000000]
    assert mask.density == 7 / 9


def test_refusals() -> None:
    mask = FlatMask(torch.tensor([True, False, True]))
    with pytest.raises(ValueError, match=r"mask is torch\.float32"):
        FlatMask(torch.ones(2))
    with pytest.raises(ValueError, match=r"of shape \(1, 2\)"):
        FlatMask(torch.ones(1, 2).bool())
    with pytest.raises(ValueError, match=r"the mask has \(3,\)"):
        mask.gather(torch.ones(4))
    with pytest.raises((RuntimeError, IndexError)):
        mask.scatter_(torch.ones(3), torch.ones(3))
    with pytest.raises(RuntimeError):
        mask.scatter_(torch.ones(3), torch.ones(2).double())
