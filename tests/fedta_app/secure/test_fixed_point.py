"""Integers for numbers: exact sums, rounding that is right on average, and what does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedta_app.secure import FixedPoint, RangeError, fraction_bits


def drawing(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bits", [32, 64])
def test_numbers_are_rounded_to_a_neighbour_and_right_on_average(bits: int) -> None:
    point = FixedPoint(bits, 4)
    values = torch.full((20_000,), 0.3)
    found = point.encode(values, drawing())
    assert found.dtype == point.dtype
    assert set(found.tolist()) == {4, 5}  # 0.3 * 16 = 4.8
    assert float(point.decode(found).mean()) == pytest.approx(0.3, abs=5e-4)


def test_whole_numbers_are_exact() -> None:
    values = torch.tensor([0.0, 1.0, -3.0, 450.0, 1e6]).double()
    for point in (FixedPoint(64, 32), FixedPoint(32, 3)):
        assert torch.equal(point.decode(point.encode(values, drawing())), values)


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=20), st.sampled_from((32, 64))
)
def test_sums_wrap_around_and_come_back(parts: list[int], bits: int) -> None:
    """A sum that fits is right, whatever the order and however large the sums on the way."""
    point = FixedPoint(bits, 0)
    rest = -sum(parts)
    wrapped = (rest + 2**31) % 2**32 - 2**31 if bits == 32 else rest
    total = sum(
        (torch.tensor([part], dtype=point.dtype) for part in [*parts, wrapped, 5]),
        torch.zeros(1, dtype=point.dtype),
    )
    assert int(point.decode(total)) == 5


@pytest.mark.parametrize(("value", "summands", "fits"), [(3.99, 2, True), (4.0, 2, False)])
def test_what_could_be_too_large_in_a_sum_is_refused(
    value: float, summands: int, fits: bool
) -> None:
    point = FixedPoint(32, 28)  # sums below 8
    values = torch.tensor([-value]).double()
    if fits:
        point.encode(values, drawing(), summands)
        return
    with pytest.raises(RangeError, match="a number of 4 in a secure sum of 2, whose summands are"):
        point.encode(values, drawing(), summands)
    with pytest.raises(RangeError):
        point.encode(torch.tensor([torch.nan]), drawing())


@given(st.floats(1e-6, 1e6), st.integers(1, 1000), st.sampled_from((32, 64)))
def test_as_many_bits_as_fit_are_behind_the_point(largest: float, summands: int, bits: int) -> None:
    fraction = fraction_bits(bits, largest, summands)
    values = torch.full((1,), largest, dtype=torch.float64)
    FixedPoint(bits, fraction).encode(values, drawing(), summands)
    with pytest.raises(RangeError):
        FixedPoint(bits, fraction + 2).encode(values, drawing(), summands)
