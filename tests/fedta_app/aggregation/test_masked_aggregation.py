"""Means over those who trained and those who agree, against per-coordinate loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.aggregation.means import (
    apply_update,
    masked_mean_update,
    mean_update,
    sign_elected_mean_update,
)
from tests.fedta_app.aggregation.aggregation_reference import (
    bits,
    close,
    elected_loop,
    loop,
    random_masks,
    random_updates,
    random_weights,
    same_bits,
)

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64])


# --- over those who trained


def test_masked_mean_by_hand() -> None:
    updates = [{"a": torch.tensor([2.0, 8.0, 5.0])}, {"a": torch.tensor([4.0, 6.0, 5.0])}]
    masks = [
        {"a": torch.tensor([True, True, False])},
        {"a": torch.tensor([True, False, False])},
    ]

    def mean(exponent: float) -> list[float]:
        result = masked_mean_update(updates, masks, [1, 3], coverage_exponent=exponent)
        return result["a"].tolist()

    assert mean(1.0) == [3.5, 8.0, 0.0]  # the second coordinate: 8 over the one who trained it
    assert mean(0.0) == [3.5, 2.0, 0.0]  # over both: 1 * 8 / 4
    assert mean(0.5) == [3.5, 4.0, 0.0]  # 1 * 8 / (1**0.5 * 4**0.5)


@few
@given(seed=seeds, clients=st.integers(1, 8), exponent=st.sampled_from([0.0, 0.3, 1.0]))
def test_masked_mean_equals_the_loop_in_any_order(seed: int, clients: int, exponent: float) -> None:
    updates, weights = random_updates(seed, clients), random_weights(seed, clients)
    masks = random_masks(seed, clients)
    mean = masked_mean_update(updates, masks, weights, coverage_exponent=exponent)
    close(mean, loop(updates, masks, weights, exponent))
    turned = masked_mean_update(
        updates[::-1], masks[::-1], weights[::-1], coverage_exponent=exponent
    )
    close(mean, turned)


@few
@given(seed=seeds)
def test_exponent_zero_is_the_plain_mean_of_masked_updates(seed: int) -> None:
    updates, masks, weights = random_updates(seed, 5), random_masks(seed, 5), [1, 2, 3, 4, 5]
    zeroed = [
        {name: value * mask.get(name, torch.tensor(True)) for name, value in update.items()}
        for update, mask in zip(updates, masks, strict=True)
    ]
    mean = masked_mean_update(updates, masks, weights, coverage_exponent=0.0)
    close(mean, mean_update(zeroed, weights))


@few
@given(seed=seeds, clients=st.integers(1, 10), dtype=dtypes, exponent=st.sampled_from([0, 0.5, 1]))
def test_equal_masks_and_integer_weights_give_the_bits_of_the_mean(
    seed: int, clients: int, dtype: torch.dtype, exponent: float
) -> None:
    updates, weights = random_updates(seed, clients, dtype), random_weights(seed, clients)
    mask = random_masks(seed, 1)[0]
    masked = masked_mean_update(updates, [mask] * clients, weights, coverage_exponent=exponent)
    plain = mean_update(updates, weights)
    plain["w"] = torch.where(mask["w"], plain["w"], 0.0)
    assert same_bits(masked, plain)


@few
@given(seed=seeds)
def test_uncovered_coordinates_keep_their_bits(seed: int) -> None:
    updates, masks = random_updates(seed, 3, torch.float32), random_masks(seed, 3)
    for mask in masks:
        mask["w"][:2] = False
    weights = {"w": torch.randn(7, 11), "b": torch.zeros(())}
    weights["w"][0] = -0.0
    before = weights["w"].clone()
    mean = masked_mean_update(updates, masks, [1, 2, 3])
    apply_update(weights, mean)
    covered = masks[0]["w"] | masks[1]["w"] | masks[2]["w"]
    assert torch.equal(bits(mean["w"])[~covered], torch.zeros_like(bits(mean["w"]))[~covered])
    assert torch.equal(bits(weights["w"])[~covered], bits(before)[~covered])
    assert (weights["w"] != before)[covered].all()


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30])
def test_values_outside_the_mask_are_ignored(rubbish: float) -> None:
    mask = {"a": torch.tensor([True, False])}
    updates = [{"a": torch.tensor([2.0, rubbish])}, {"a": torch.tensor([4.0, 1.0])}]
    for mean in (
        masked_mean_update(updates, [mask, {}], [1, 1]),
        sign_elected_mean_update(updates, [1, 1], [mask, {}]),
    ):
        assert mean["a"].tolist() == [3.0, 1.0]


def test_what_is_not_finite_inside_the_mask_is_not_hidden() -> None:
    updates = [{"a": torch.tensor([math.nan, 1.0])}, {"a": torch.ones(2)}]
    masks = [{"a": torch.tensor([True, False])}, {}]
    mean = masked_mean_update(updates, masks, [1, 1])["a"]
    assert mean.isnan().tolist() == [True, False]


def test_blocks_and_memory_layouts_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    updates, masks, weights = random_updates(2, 4, torch.float32), random_masks(2, 4), [1, 2, 3, 4]
    whole = masked_mean_update(updates, masks, weights)
    elected = sign_elected_mean_update(updates, weights, masks)
    monkeypatch.setattr("fedta_app.vectors.arithmetic.BLOCK", 5)
    turned = [{**update, "w": update["w"].t().contiguous().t()} for update in updates]
    assert same_bits(masked_mean_update(turned, masks, weights), whole)
    assert same_bits(sign_elected_mean_update(turned, weights, masks), elected)


# --- over those who agree


def test_sign_election_by_hand() -> None:
    updates = [
        {"a": torch.tensor([1.0, 1.0, 1.0, 0.0, 2.0])},
        {"a": torch.tensor([3.0, 1.0, -1.0, -4.0, 2.0])},
        {"a": torch.tensor([-2.0, -3.0, 0.0, -2.0, -4.0])},
    ]
    mean = sign_elected_mean_update(updates, [1, 1, 1])["a"]
    # +4 beats -2; -3 beats +2; a draw; zeros have no share; a draw of unequal numbers
    assert mean.tolist() == [2.0, -3.0, 0.0, -3.0, 0.0]
    heavier = sign_elected_mean_update(updates, [1, 1, 3])["a"]
    assert heavier.tolist() == [-2.0, -3.0, 0.0, -2.5, -4.0]


@few
@given(seed=seeds, clients=st.integers(1, 8))
def test_sign_election_equals_the_loop(seed: int, clients: int) -> None:
    updates, weights = random_updates(seed, clients), random_weights(seed, clients)
    masks = random_masks(seed, clients)
    close(
        sign_elected_mean_update(updates, weights), elected_loop(updates, [{}] * clients, weights)
    )
    close(sign_elected_mean_update(updates, weights, masks), elected_loop(updates, masks, weights))


@few
@given(seed=seeds)
def test_sign_election_without_conflict_is_the_masked_mean(seed: int) -> None:
    updates = [{"w": update["w"].abs()} for update in random_updates(seed, 4)]
    masks = [{"w": mask["w"]} for mask in random_masks(seed, 4)]
    elected = sign_elected_mean_update(updates, [1, 2, 3, 4], masks)
    assert same_bits(elected, masked_mean_update(updates, masks, [1, 2, 3, 4]))


# --- half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mean", "masked", "elected"])
def test_half_precision_counts_clients_and_weights_in_float32(
    dtype: torch.dtype, kind: str
) -> None:
    """Weights above float16's range, and more clients than bfloat16 can count."""

    def combined(values: list[float], weights: list[float]) -> float:
        updates = [{"a": torch.tensor([value], dtype=dtype)} for value in values]
        if kind == "mean":
            mean = mean_update(updates, weights)
        elif kind == "masked":
            mean = masked_mean_update(updates, [{}] * len(updates), weights)
        else:
            mean = sign_elected_mean_update(updates, weights)
        assert mean["a"].dtype == dtype
        return mean["a"].item()

    assert combined([1.0, 2.0], [40_000, 40_000]) == 1.5
    values = [float(1 + number % 3) for number in range(300)]
    assert combined(values, [1.0] * 300) == 2.0


@few
@given(
    seed=seeds, clients=st.integers(1, 40), dtype=st.sampled_from([torch.float16, torch.bfloat16])
)
def test_half_precision_is_the_float64_mean_rounded_once(
    seed: int, clients: int, dtype: torch.dtype
) -> None:
    updates, weights = random_updates(seed, clients, dtype), random_weights(seed, clients)
    masks = random_masks(seed, clients)
    exact = loop(
        [{n: v.double() for n, v in update.items()} for update in updates], masks, weights, 1.0
    )
    mean = masked_mean_update(updates, masks, weights)
    ulp = torch.finfo(dtype).eps
    for name, value in mean.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=ulp, atol=ulp / 1000)


@pytest.mark.parametrize("weight", [1e39, math.inf, math.nan, -1.0])
def test_a_weight_that_float32_cannot_hold_is_refused(weight: float) -> None:
    update = {"a": torch.ones(1)}
    for mean in (
        lambda: mean_update([update], [weight]),
        lambda: masked_mean_update([update], [{}], [weight]),
        lambda: sign_elected_mean_update([update], [weight]),
    ):
        with pytest.raises(ValueError, match="at most"):
            mean()
