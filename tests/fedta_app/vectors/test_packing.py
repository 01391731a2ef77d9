"""The packed form: order, round trip, and that nothing outside the mask is touched."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedta_app.aggregation.means import apply_update
from fedta_app.vectors.packing import Packing, pack, packed_size, unpack_into

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16])


def draw(
    seed: int, dtype: torch.dtype, density: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"z": (5, 9), "a": (13,), "scalar": (), "empty": (0, 3)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    mask = {
        name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()
    }
    return {name: value.to(dtype) for name, value in tensors.items()}, mask


def test_order_is_the_masks_then_position() -> None:
    mask = {"z": torch.tensor([[True, False], [False, True]]), "a": torch.tensor([True])}
    tensors = {"a": torch.tensor([9.0]), "z": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    assert pack(tensors, mask).tolist() == [1.0, 4.0, 9.0]
    assert packed_size(mask) == 3


@few
@given(seed=seeds, dtype=dtypes, density=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_round_trip(seed: int, dtype: torch.dtype, density: float) -> None:
    tensors, mask = draw(seed, dtype, density)
    target, _ = draw(seed + 1, dtype, density)
    before = {name: value.clone() for name, value in target.items()}
    packed = pack(tensors, mask)
    assert packed.dtype == dtype or packed.numel() == 0
    assert packed.shape == (packed_size(mask),) == (Packing(mask).size,)
    unpack_into(target, packed, mask)
    for name, trained in mask.items():
        assert torch.equal(target[name], torch.where(trained, tensors[name], before[name]))
    assert torch.equal(pack(target, mask), packed)


@few
@given(seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_add_has_the_bits_of_apply_update(seed: int, dtype: torch.dtype) -> None:
    weights, mask = draw(seed, dtype, 0.5)
    update, _ = draw(seed + 1, dtype, 0.5)
    weights["z"][:3] = -0.0
    update["z"][1] = 0.0
    dense = {name: value.clone() for name, value in weights.items()}
    apply_update(dense, update, scale=0.3, mask=mask)
    packing = Packing(mask)
    packing.add_(weights, packing.gather(update), alpha=0.3)
    for name, value in weights.items():
        assert torch.equal(value, dense[name])
        assert torch.equal(value.signbit(), dense[name].signbit())


def test_any_memory_layout() -> None:
    conv = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    mask = {"weight": torch.rand(4, 3, 2, 2) < 0.5}
    before = conv.weight.detach().clone()
    packed = pack({"weight": conv.weight}, mask)
    assert torch.equal(packed, before[mask["weight"]])
    Packing(mask).add_({"weight": conv.weight}, torch.ones_like(packed))
    assert torch.equal(conv.weight, before + mask["weight"])
    unpack_into({"weight": conv.weight}, packed, mask)
    assert torch.equal(conv.weight, before)


def test_what_the_mask_does_not_name_stays() -> None:
    mask = {"a": torch.tensor([True, True])}
    tensors = {"a": torch.ones(2), "head": torch.ones(3)}
    assert pack(tensors, mask).tolist() == [1.0, 1.0]
    unpack_into(tensors, torch.zeros(2), mask)
    assert tensors["head"].tolist() == [1.0, 1.0, 1.0]


def test_inputs_are_not_shared_with_the_packed_form() -> None:
    tensors = {"a": torch.ones(2)}
    pack(tensors, {"a": torch.ones(2, dtype=torch.bool)}).fill_(5.0)
    assert tensors["a"].tolist() == [1.0, 1.0]


def test_refusals() -> None:
    mask = {"a": torch.tensor([True, False]), "b": torch.tensor([True])}
    packing = Packing(mask)
    good = {"a": torch.ones(2), "b": torch.ones(1)}
    with pytest.raises(ValueError, match=r"must be torch\.bool"):
        Packing({"a": torch.ones(2)})
    with pytest.raises(ValueError, match="tensors lack 'b'"):
        packing.gather({"a": torch.ones(2)})
    with pytest.raises(ValueError, match=r"its mask has \(2,\)"):
        packing.gather({**good, "a": torch.ones(3)})
    with pytest.raises(ValueError, match="must share one"):
        packing.gather({**good, "a": torch.ones(2).double()})
    with pytest.raises(ValueError, match=r"shape \(3,\); it must be \(2,\)"):
        packing.scatter_(good, torch.ones(3))
    with pytest.raises(ValueError, match="must share one"):
        packing.add_(good, torch.ones(2).double())
