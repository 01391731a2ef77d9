"""The mean over everybody, applying it, and refusals; what is promised to be exact, is."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.aggregation.accumulators import MaskedMeanAccumulator, MeanAccumulator
from fedta_app.aggregation.means import (
    apply_update,
    masked_mean_update,
    mean_update,
    sign_elected_mean_update,
)
from fedta_app.vectors import FlatMask
from tests.fedta_app.aggregation.aggregation_reference import (
    Named,
    bits,
    close,
    loop,
    random_masks,
    random_updates,
    random_weights,
    same_bits,
)

few = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64])


# --- over everybody


def test_mean_by_hand() -> None:
    updates = [{"a": torch.tensor([1.0, 4.0])}, {"a": torch.tensor([5.0, -4.0])}]
    assert torch.equal(mean_update(updates, [300, 100])["a"], torch.tensor([2.0, 2.0]))


@few
@given(seed=seeds, clients=st.integers(1, 12), dtype=dtypes)
def test_mean_is_the_weighted_mean_in_any_order(
    seed: int, clients: int, dtype: torch.dtype
) -> None:
    updates, weights = random_updates(seed, clients, dtype), random_weights(seed, clients)
    mean = mean_update(updates, weights)
    close(mean, loop(updates, [{}] * clients, weights, 1.0))
    close(mean, mean_update(updates[::-1], weights[::-1]))
    close(mean, mean_update(updates, [weight / 7 for weight in weights]))


def test_mean_is_as_accurate_as_a_plain_sum() -> None:
    updates, weights = random_updates(3, 50, torch.float32), random_weights(3, 50)
    exact = loop(updates, [{}] * 50, weights, 1.0)  # summed in float64, stored in float32
    error = (mean_update(updates, weights)["w"] - exact["w"]).abs().max()
    assert error < 50 * 2**-24 * max(update["w"].abs().max() for update in updates) / 4


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("number", [1, 10])
def test_zero_updates_give_positive_zero(zero: float, number: int) -> None:
    updates = [{"w": torch.full((37,), zero)} for _ in range(number)]
    masks = [{"w": torch.arange(37) % 2 == 0}] * number
    for mean in (
        mean_update(updates, [0.1] * number),
        masked_mean_update(updates, masks, [0.1] * number),
        masked_mean_update(updates, masks, [0.1] * number, coverage_exponent=0.5),
        sign_elected_mean_update(updates, [0.1] * number, masks),
    ):
        assert same_bits(mean, {"w": torch.zeros(37)})


@few
@given(seed=seeds, dtype=dtypes)
def test_equal_updates_give_that_update_exactly(seed: int, dtype: torch.dtype) -> None:
    update = random_updates(seed, 1, dtype)[0]
    weights = [0.3, 7.0, *random_weights(seed, 8)]
    assert same_bits(mean_update([update] * 10, weights), update)
    assert same_bits(masked_mean_update([update] * 10, [{}] * 10, weights), update)
    assert same_bits(sign_elected_mean_update([update] * 10, weights), update)


def test_ten_equal_models_leave_the_global_bits() -> None:
    model = {"w": torch.randn(1000), "b": torch.tensor([0.0, -0.0, 1e-42, 3.0])}
    before = {name: value.clone() for name, value in model.items()}
    updates = [{name: value.clone() - value for name, value in model.items()} for _ in range(10)]
    apply_update(model, mean_update(updates, [10] * 10))
    assert same_bits(model, before)
    averaged = sum(value * 0.1 for value in [before["w"]] * 10)
    assert not torch.equal(averaged, before["w"])  # what averaging models would have done


def test_packed_and_dense_means_have_the_same_bits() -> None:
    updates, weights = random_updates(5, 6, torch.float32), random_weights(5, 6)
    mask = FlatMask(random_masks(5, 1)[0]["w"].flatten())
    packed = mean_update([{"p": mask.gather(update["w"].flatten())} for update in updates], weights)
    dense = mask.gather(mean_update(updates, weights)["w"].flatten())
    assert torch.equal(bits(packed["p"]), bits(dense))


def test_streaming_gives_the_bits_of_the_list_and_reads_once() -> None:
    updates, weights = random_updates(8, 5, torch.float32), random_weights(8, 5)
    accumulator = MeanAccumulator()
    for update, weight in zip(updates, weights, strict=True):
        accumulator.add(update["w"], weight)

    def once() -> Iterator[Named]:
        yield from updates

    mean = mean_update(once(), iter(weights))
    assert torch.equal(bits(accumulator.result()), bits(mean["w"]))
    assert same_bits(mean_update(updates, weights), mean)


def test_the_number_of_threads_does_not_matter() -> None:
    updates = [{"w": torch.randn(100_003)} for _ in range(3)]
    masks = [{"w": torch.rand(100_003) < 0.5} for _ in range(3)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = mean_update(updates, [1, 2, 3]), masked_mean_update(updates, masks, [1, 2, 3])
        torch.set_num_threads(3)
        three = mean_update(updates, [1, 2, 3]), masked_mean_update(updates, masks, [1, 2, 3])
    finally:
        torch.set_num_threads(threads)
    assert same_bits(one[0], three[0])
    assert same_bits(one[1], three[1])


def test_result_hands_over_and_starts_afresh() -> None:
    accumulator = MeanAccumulator()
    accumulator.add(torch.tensor([1.0]), 1)
    first = accumulator.result()
    accumulator.add(torch.tensor([4.0, 4.0]), 1)
    assert first.tolist() == [1.0]
    assert accumulator.result().tolist() == [4.0, 4.0]
    with pytest.raises(ValueError, match="positive weight"):
        accumulator.result()


def test_inputs_are_not_changed_nor_shared() -> None:
    updates, masks, weights = random_updates(1, 4), random_masks(1, 4), [1.0, 0.0, 2.0, 3.0]
    before = [{name: value.clone() for name, value in update.items()} for update in updates]
    means = [
        mean_update(updates, weights),
        mean_update(updates[:1], [1]),
        masked_mean_update(updates, masks, weights),
        masked_mean_update(updates[:1], [{}], [1], coverage_exponent=0.5),
        sign_elected_mean_update(updates, weights, masks),
    ]
    for mean in means:
        mean["w"].fill_(99.0)
    assert all(same_bits(update, old) for update, old in zip(updates, before, strict=True))


def test_zero_weight_is_ignored_even_first_and_even_if_not_finite() -> None:
    broken = {"a": torch.tensor([math.nan])}
    good = {"a": torch.tensor([2.0])}
    for order, weights in (([broken, good], [0, 5]), ([good, broken], [5, 0])):
        assert mean_update(order, weights)["a"].item() == 2.0
        assert masked_mean_update(order, [{}, {}], weights)["a"].item() == 2.0
        assert sign_elected_mean_update(order, weights)["a"].item() == 2.0


# --- applying


def test_apply_update_by_hand() -> None:
    weights = {"a": torch.tensor([1.0, 2.0, -0.0, math.nan]), "head": torch.ones(1)}
    mask = {"a": torch.tensor([True, False, False, False])}
    before = weights["a"].clone()
    apply_update(weights, {"a": torch.tensor([4.0, 4.0, 0.0, 4.0])}, scale=0.5, mask=mask)
    assert weights["a"][0].item() == 3.0
    assert torch.equal(bits(weights["a"])[1:], bits(before)[1:])
    assert weights["head"].item() == 1.0


@few
@given(seed=seeds, dtype=dtypes)
def test_apply_update_adds_where_trained_and_keeps_bits_elsewhere(
    seed: int, dtype: torch.dtype
) -> None:
    weights, update = random_updates(seed, 2, dtype)
    mask = random_masks(seed, 1)[0]
    weights["w"][3:5] = -0.0
    update["w"][4:6] = 0.0
    before = {name: value.clone() for name, value in weights.items()}
    apply_update(weights, update, scale=0.7, mask=mask)
    moved = mask["w"] & (update["w"] != 0)
    close(
        {"w": weights["w"]}, {"w": torch.where(moved, before["w"] + 0.7 * update["w"], before["w"])}
    )
    assert torch.equal(bits(weights["w"])[~moved], bits(before["w"])[~moved])
    close({"b": weights["b"]}, {"b": before["b"] + 0.7 * update["b"]})


def test_apply_update_takes_parameters_and_any_layout() -> None:
    layer = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    before = layer.weight.detach().clone()
    update, mask = torch.randn(4, 3, 2, 2), torch.rand(4, 3, 2, 2) < 0.5
    apply_update(dict(layer.named_parameters()), {"weight": update}, mask={"weight": mask})
    assert torch.equal(layer.weight, torch.where(mask, before + update, before))


# --- refusals


GOOD = {"a": torch.ones(2)}


@pytest.mark.parametrize(
    ("updates", "weights", "message"),
    [
        ([], [], "positive weight"),
        ([GOOD, GOOD], [0, 0], "positive weight"),
        ([GOOD, GOOD], [1, -1], "weight is -1"),
        ([GOOD], [math.nan], "weight is nan"),
        ([GOOD], [math.inf], "weight is inf"),
        ([GOOD, {"b": torch.ones(2)}], [1, 1], "names, at 'a'"),
        ([GOOD, {}], [1, 1], "names, at 'a'"),
        ([GOOD, {"a": torch.ones(3)}], [1, 1], r"\(3,\) torch.float32; it must be \(2,\)"),
        ([GOOD, {"a": torch.ones(2).double()}], [1, 1], "float64; it must be"),
        ([{"a": torch.ones(2).long()}], [1], "floating point"),
        ([GOOD, GOOD], [1], "differ in number"),
        ([GOOD], [1, 1], "differ in number"),
    ],
)
def test_unfit_updates_and_weights_are_refused(
    updates: list[Named], weights: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mean_update(updates, weights)
    with pytest.raises(ValueError, match=message):
        masked_mean_update(updates, [{}] * len(updates), weights)
    with pytest.raises(ValueError, match=message):
        sign_elected_mean_update(updates, weights)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"b": torch.ones(2, dtype=torch.bool)}, "mask has 'b'"),
        ({"a": torch.ones(3, dtype=torch.bool)}, r"it must be \(2,\) torch.bool"),
        ({"a": torch.ones(2)}, r"it must be \(2,\) torch.bool"),
    ],
)
def test_unfit_masks_are_refused(mask: Named, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_mean_update([GOOD], [mask], [1])
    with pytest.raises(ValueError, match=message):
        sign_elected_mean_update([GOOD], [1], [mask])
    with pytest.raises(ValueError, match=message):
        apply_update({"a": torch.zeros(2)}, GOOD, mask=mask)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="differ in number"):
        masked_mean_update([GOOD, GOOD], [{}], [1, 1])
    with pytest.raises(ValueError, match=r"coverage_exponent is 1.5"):
        MaskedMeanAccumulator(1.5)
    with pytest.raises(ValueError, match="global weights lack"):
        apply_update({}, GOOD)
    with pytest.raises(ValueError, match=r"it must be \(3,\)"):
        apply_update({"a": torch.zeros(3)}, GOOD)
