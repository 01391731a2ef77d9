"""Secure sums: exact, also after drop-outs; closed where too few answer; nothing in one vector."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedta_app.errors import RunError
from fedta_app.secure import SecureSum, UnmaskError
from fedta_app.secure.shamir import SHARE_BYTES

CLIENTS = (2, 3, 5, 7, 11)
WHOLE = SecureSum(0, "test", CLIENTS, threshold=3)


def integers(client: int, dtype: torch.dtype, size: int = 50) -> Tensor:
    bits = torch.iinfo(dtype).bits
    generator = torch.Generator().manual_seed(client)
    most = 2 ** (bits - 4)
    return torch.randint(-most, most, (size,), generator=generator).to(dtype)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from((torch.int32, torch.int64)),
    st.sets(st.sampled_from(CLIENTS), min_size=3),
    st.data(),
)
def test_the_sum_is_exact_whoever_drops_out(
    dtype: torch.dtype, answered: set[int], data: st.DataObject
) -> None:
    there = sorted(answered)
    helpers = data.draw(st.permutations(there).map(lambda order: order[: len(order)]))
    helpers = helpers[: data.draw(st.integers(3, len(there)))]
    total = torch.zeros(50, dtype=dtype)
    for client in there:
        total += WHOLE.masked(client, integers(client, dtype))
    found = WHOLE.unmasked(total, there, {c: WHOLE.shares(c, there) for c in helpers})
    expected = torch.zeros(50, dtype=dtype)
    for client in there:
        expected += integers(client, dtype)
    assert torch.equal(found, expected)


def test_masks_differ_from_sum_to_sum_and_by_seed() -> None:
    values = torch.zeros(50, dtype=torch.int64)
    found = [
        whole.masked(3, values)
        for whole in (WHOLE, SecureSum(0, "other", CLIENTS, 3), SecureSum(1, "test", CLIENTS, 3))
    ]
    assert not any(
        torch.equal(one, other) for n, one in enumerate(found) for other in found[n + 1 :]
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_one_masked_vector_looks_uniform(dtype: torch.dtype) -> None:
    """Chi-square over the values of the highest and the lowest byte, of constant integers."""
    masked = WHOLE.masked(5, torch.full((200_000,), 12_345, dtype=dtype))
    for shift in (0, torch.iinfo(dtype).bits - 8):
        counts = torch.bincount(((masked >> shift) & 255).long(), minlength=256).double()
        expected = 200_000 / 256
        statistic = float(((counts - expected) ** 2 / expected).sum())
        assert 170 < statistic < 350  # of 255 degrees of freedom: mean 255, deviation 22.6


def test_too_few_answers_open_nothing() -> None:
    with pytest.raises(UnmaskError, match="2 of 5 clients are in the sum 'test', and at least 3"):
        WHOLE.shares(2, (2, 3))
    with pytest.raises(UnmaskError, match="5 clients are in the sum"):
        WHOLE.shares(2, (2, 3, 4))  # client 4 was not asked
    total = sum(WHOLE.masked(client, integers(client, torch.int32)) for client in (2, 3, 5))
    assert isinstance(total, Tensor)
    told = {client: WHOLE.shares(client, (2, 3, 5)) for client in (2, 3)}
    with pytest.raises(UnmaskError, match="2 clients told their shares of the sum 'test', and at"):
        WHOLE.unmasked(total, (2, 3, 5), told)


def test_shares_are_of_one_secret_of_each_client_alone() -> None:
    """Of those that answered, the seed of their own mask; of the others, their key."""
    everybody, without = (WHOLE.shares(2, answered) for answered in (CLIENTS, (2, 3, 5)))
    assert everybody.shape == (5, SHARE_BYTES) and everybody.dtype == torch.uint8
    same = [torch.equal(*pair) for pair in zip(everybody, without, strict=True)]
    assert same == [True, True, True, False, False]


def test_damaged_shares_are_no_wrong_sum() -> None:
    total = torch.zeros(50, dtype=torch.int32)
    for client in CLIENTS:
        total += WHOLE.masked(client, integers(client, torch.int32))
    told = {client: WHOLE.shares(client, CLIENTS) for client in CLIENTS}
    told[2][0, 40] ^= 1
    with pytest.raises(UnmaskError, match="shares of client 2's secret in the sum 'test' do not"):
        WHOLE.unmasked(total, CLIENTS, told)


@pytest.mark.parametrize(
    ("clients", "threshold", "sentence"),
    [
        ((3,), 1, "two or more, sorted"),
        ((3, 2), 2, "two or more, sorted"),
        ((2, 2), 2, "two or more, sorted"),
        ((1, 2, 3, 4), 2, "a threshold of 2 of 4 clients; it is more than half"),
        ((1, 2, 3, 4), 5, "at most all"),
    ],
)
def test_a_sum_that_protects_nobody_is_refused(
    clients: tuple[int, ...], threshold: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        SecureSum(0, "test", clients, threshold)


@pytest.mark.parametrize("clients", [[], [3], [3, 5]])
def test_of_two_each_could_take_itself_away(clients: list[int]) -> None:
    said = f"secure aggregation cannot add up what {len(clients)} clients send, in the sum 'head'"
    with pytest.raises(RunError, match=said):
        SecureSum.over(4, "head", clients, 0.6)
    assert SecureSum.over(4, "head", [1, 2, 3], 0.6).threshold == 3


@given(st.sets(st.integers(0, 10**6), min_size=3, max_size=30), st.floats(0.51, 1.0))
def test_a_message_names_the_sum(clients: set[int], share: float) -> None:
    whole = SecureSum.over(4, "train 3", list(clients), share)
    assert SecureSum.from_config(4, whole.to_config()) == whole
    assert len(clients) / 2 < whole.threshold <= len(clients)
    assert whole.threshold >= share * len(clients) - 1e-9
    with pytest.raises(ValueError, match="the server asks for a bare vector"):
        SecureSum.from_config(4, {})
