import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.pace.schedule import learning_rate, schedule_warning


def rates(**values: object) -> list[float]:
    config = RunConfig.from_mapping({"lr": 0.2, "num-server-rounds": 8, **values})
    return [learning_rate(config, r) for r in range(1, 9)]


def test_constant() -> None:
    assert rates() == [0.2] * 8


def test_step() -> None:
    found = rates(**{"lr-schedule": "step", "lr-step-rounds": 3, "lr-step-factor": 0.5})
    assert found == [0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05]


def test_the_rate_grows_in_proportion_to_the_batch() -> None:
    warm = {"lr-schedule": "warmup-cosine", "warmup-rounds": 3, "lr-batch-size": 16}
    assert rates(**warm, **{"batch-size": 64}) == pytest.approx(
        [4 * rate for rate in rates(**warm, **{"batch-size": 16})]
    )
    assert rates(**{"lr-batch-size": 16, "batch-size": 4}) == [0.05] * 8


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(**{"lr-schedule": "cosine"}) == pytest.approx(expected, rel=1e-12)


def test_warmup_reaches_the_peak_and_then_follows_the_cosine() -> None:
    found = rates(**{"lr-schedule": "warmup-cosine", "warmup-rounds": 4})
    assert found[:5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2])
    assert found[-1] == pytest.approx(0.1 * (1 + math.cos(math.pi * 3 / 4)))


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    rounds = draw(st.integers(1, 40))
    kinds = ["constant", "step", "cosine"] + ["warmup-cosine"] * (rounds > 2)
    values = {
        "num-server-rounds": rounds,
        "lr": draw(st.floats(1e-6, 10)),
        "lr-schedule": draw(st.sampled_from(kinds)),
        "lr-step-rounds": draw(st.integers(1, 50)),
    }
    # Steps that leave less than 1e-20 of the rate are refused.
    steps = max(1, (rounds - 1) // values["lr-step-rounds"])
    least = max(0.01, 1e-19 ** (1 / steps))
    values["lr-step-factor"] = draw(st.just(1.0) | st.floats(least, 1))
    if values["lr-schedule"] == "warmup-cosine":
        values["warmup-rounds"] = draw(st.integers(2, rounds - 1))
    return values


def closed_form(config: RunConfig) -> np.ndarray:
    """Return the rates of all rounds by the formulas of docs/method.md, in float64."""
    rounds, warmup = config.num_server_rounds, config.warmup_rounds
    done = np.arange(rounds, dtype=np.float64)
    factors = {
        "constant": np.ones(rounds),
        "step": config.lr_step_factor ** np.floor(done / config.lr_step_rounds),
        "cosine": np.cos(np.pi * done / rounds / 2) ** 2,
        "warmup-cosine": np.where(
            done < warmup,
            (done + 1) / max(warmup, 1),
            np.cos(np.pi * (done - warmup) / (rounds - warmup) / 2) ** 2,
        ),
    }
    return config.lr * factors[config.lr_schedule]


@settings(max_examples=300)
@given(schedules())
def test_random_schedules_are_the_closed_form_and_do_something_or_say_that_they_do_not(
    values,
) -> None:
    config = RunConfig.from_mapping(values)
    found = np.array([learning_rate(config, r) for r in range(1, config.num_server_rounds + 1)])
    assert found == pytest.approx(closed_form(config), rel=1e-9, abs=1e-12)
    warmup = config.warmup_rounds
    assert (found[:warmup][:-1] < config.lr).all()  # each round of a warm-up but its last
    decays = config.lr_schedule != "constant" and (found[warmup:] < config.lr).any()
    assert bool(schedule_warning(config)) == (config.lr_schedule != "constant" and not decays)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"lr-schedule": "step", "lr-step-rounds": 8},
            "step' lowers lr in no round: its first step would come after lr-step-rounds = 8",
        ),
        (
            {"lr-schedule": "cosine", "num-server-rounds": 1},
            "cosine' lowers lr in no round: num-server-rounds = 1 leaves its cosine one round",
        ),
        (
            {"lr-schedule": "warmup-cosine", "warmup-rounds": 7},
            "num-server-rounds = 8 leaves its cosine one round after warmup-rounds = 7",
        ),
        ({"head": "ridge", "head-refresh": 9}, "head-refresh never acts: num-server-rounds = 8"),
        ({"adacomm-rounds": 8}, "adacomm-rounds never acts"),
        ({"noise-scale-rounds": 8, "local-steps": 1}, "noise-scale-rounds never acts"),
    ],
)
def test_a_key_in_rounds_that_does_nothing_is_said(values, sentence) -> None:
    config = RunConfig.from_mapping({"num-server-rounds": 8, **values})
    assert sentence in schedule_warning(config)
    counted = values.keys() & {"head-refresh", "adacomm-rounds", "noise-scale-rounds"}
    for key in counted:
        assert not schedule_warning(
            RunConfig.from_mapping({"num-server-rounds": 8, **values, key: values[key] - 1})
        )


def test_a_warm_up_of_one_round_would_be_none_and_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup-rounds = 1 is not allowed .* at least 2 there"):
        rates(**{"lr-schedule": "warmup-cosine", "warmup-rounds": 1})
