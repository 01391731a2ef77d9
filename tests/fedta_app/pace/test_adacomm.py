"""AdaComm against its formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedta_app.pace import AdaComm


def steps_after(losses: list[float], steps: int, every: int, factor: float) -> list[int]:
    rule, found = AdaComm(steps, every, factor), []
    for loss in losses:
        rule.observe(loss)
        found.append(rule.steps)
    return found


def test_steps_follow_the_root_of_the_loss() -> None:
    # sqrt(0.81) * 10 = 9, sqrt(0.25) * 10 = 5, sqrt(0.2) * 10 = 4.47
    assert steps_after([1.0, 0.81, 0.25, 0.2], 10, 1, 1.0) == [10, 9, 5, 5]


def test_steps_are_halved_where_the_loss_does_not_lower_them() -> None:
    assert steps_after([1.0, 0.81, 0.9, 2.0], 10, 1, 0.5) == [5, 3, 2, 1]


@given(st.floats(1e-3, 1e3), st.integers(1, 64), st.integers(1, 5))
def test_a_constant_loss_leaves_the_steps_with_factor_1(
    loss: float, steps: int, every: int
) -> None:
    assert set(steps_after([loss] * 20, steps, every, 1.0)) == {steps}


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=30),
    st.integers(1, 64), st.integers(1, 5), st.floats(0.01, 1.0),
)  # fmt: skip
def test_steps_never_rise_and_never_end(
    losses: list[float], steps: int, every: int, factor: float
) -> None:
    found = [steps, *steps_after(losses, steps, every, factor)]
    assert found == sorted(found, reverse=True)
    assert found[-1] >= 1
    for end in range(every, len(losses) + 1, every):  # where only the formula lowers them
        mean = math.fsum(losses[end - every : end]) / every
        if losses[0] > 1e-9:
            wanted = max(1, math.ceil(math.sqrt(mean / losses[0]) * steps))
            assert found[end] <= max(wanted, math.ceil(factor * found[end - 1]))


@pytest.mark.parametrize("every", [1, 3])
def test_it_goes_on_from_its_state(every: int) -> None:
    losses = [3.0, 2.5, 2.0, 1.0, 0.9, 0.5]
    whole = steps_after(losses, 20, every, 0.5)
    for cut in range(len(losses)):
        first, second = AdaComm(20, every, 0.5), AdaComm(20, every, 0.5)
        for loss in losses[:cut]:
            first.observe(loss)
        second.load_state_dict(first.state_dict())
        for loss, expected in zip(losses[cut:], whole[cut:], strict=True):
            second.observe(loss)
            assert second.steps == expected
