import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.masks import intersection, round_density, union, vote
from fedta_app.vectors import FlatMask

few = settings(deadline=None, max_examples=40)
SIZE = 23


def random_mask(seed):
    return FlatMask(torch.rand(SIZE, generator=torch.Generator().manual_seed(seed)) < 0.5)


def entries(mask):
    return mask.mask.tolist()


@few
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_union_and_intersection_are_those_of_sets(seeds):
    masks = [random_mask(seed) for seed in seeds]
    columns = list(zip(*map(entries, masks), strict=True))
    both = union(iter(masks)), intersection(iter(masks))
    assert entries(both[0]) == [any(column) for column in columns]
    assert entries(both[1]) == [all(column) for column in columns]
    inverted = union(FlatMask(~mask.mask) for mask in masks)
    assert entries(both[1]) == [not value for value in entries(inverted)]  # De Morgan
    assert entries(masks[0]) == entries(random_mask(seeds[0]))  # the inputs are untouched


@few
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6), st.integers(0, 100))
def test_vote_is_the_top_by_votes_then_order_then_position(seeds, percent):
    masks = [random_mask(seed) for seed in seeds]
    lots = torch.randint(0, 3, (SIZE,)).float()
    votes = [sum(column) for column in zip(*map(entries, masks), strict=True)]
    size = round_density(1 - percent / 100, SIZE)
    for given_order, second in ((None, [0.0] * SIZE), (lots, lots.tolist())):
        order = sorted(range(SIZE), key=lambda i: (-votes[i], second[i], i))
        mask = vote(iter(masks), sparsity=1 - percent / 100, order=given_order)
        assert {i for i, trained in enumerate(entries(mask)) if trained} == set(order[:size])


def test_vote_of_equal_masks_is_that_mask():
    mask = FlatMask(torch.arange(100) % 10 == 3)
    assert entries(vote([mask] * 3, sparsity=0.9)) == entries(mask)


def test_vote_counts_beyond_a_byte():
    rare = FlatMask(torch.tensor([True, False, False, False]))
    often = FlatMask(torch.tensor([False, True, False, True]))
    masks = [rare] * 299 + [often] * 300
    assert entries(vote(masks, sparsity=0.5)) == [False, True, False, True]


@pytest.mark.parametrize("combine", [union, intersection])
def test_a_mask_alone_is_itself_and_none_is_an_error(combine):
    assert entries(combine([random_mask(1)])) == entries(random_mask(1))
    with pytest.raises(TypeError, match="empty"):
        combine([])
