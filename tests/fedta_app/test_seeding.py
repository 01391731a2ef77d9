"""Seeds: integers of every type count as their value, and nothing else is a seed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedta_app.config import RunConfig
from fedta_app.data.loading import load_data, stratified_split
from fedta_app.masks import build_mask, calibrate_mask
from fedta_app.models.building import build_model
from fedta_app.partition import partition
from fedta_app.seeding import derive_seed
from fedta_app.sensitivity import fisher_diagonal
from strategies.nodes import Nodes

LABELS = np.arange(60) % 6
KINDS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
MODEL = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6))
for _number, _parameter in enumerate(MODEL.parameters()):
    _parameter.data = torch.linspace(-1, 1, _parameter.numel()).view_as(_parameter) + _number / 9
BATCHES = [(torch.linspace(-1, 1, 48).view(12, 4), torch.arange(12) % 6)]


def _models(seed: Any) -> list[Tensor]:
    built = build_model(
        "vit_digits", weights="random", image_size=0, num_classes=10, in_channels=1, seed=seed
    )
    return list(built.model.state_dict().values())


DRAWS: dict[str, Callable[[Any], Any]] = {
    "iid": lambda seed: partition(LABELS, 7, scheme="iid", seed=seed),
    "classes": lambda seed: partition(
        LABELS, 6, scheme="classes", num_classes_per_client=2, seed=seed
    ),
    "dirichlet": lambda seed: partition(LABELS, 7, scheme="dirichlet", alpha=0.5, seed=seed),
    "validation split": lambda seed: stratified_split(LABELS, 0.2, seed),
    "sampling": lambda seed: Nodes({n: n for n in range(40)}).sample(0.3, seed, "train", 1),
    "random mask": lambda seed: list(
        build_mask(dict(MODEL.named_parameters()), rule="random", sparsity=0.5, seed=seed).values()
    ),
    "calibrated mask": lambda seed: list(
        calibrate_mask(
            MODEL, BATCHES, rule="least-sensitive", sparsity=0.7, num_rounds=2, seed=seed
        ).values()
    ),
    "drawn labels": lambda seed: list(fisher_diagonal(MODEL, BATCHES, seed=seed).values()),
}
SLOWER: dict[str, Callable[[Any], Any]] = {
    "data": lambda seed: load_data("digits", "", val_size=0.1, seed=seed).digest,
    "model": _models,
    "configuration": lambda seed: RunConfig.from_mapping({"seed": seed}),
}
EVERY = DRAWS | SLOWER


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor | np.ndarray):
        return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())
    return bool(one == other) and type(one) is type(other)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 127), st.sampled_from(KINDS), st.sampled_from(sorted(DRAWS)))
def test_the_type_of_an_integer_seed_does_not_matter(seed, kind, name) -> None:
    assert _same(DRAWS[name](seed), DRAWS[name](kind(seed)))


@pytest.mark.parametrize("name", SLOWER)
def test_nor_does_it_for_data_models_and_configurations(name) -> None:
    assert _same(SLOWER[name](3), SLOWER[name](np.uint32(3)))


@pytest.mark.parametrize("seed", [1.0, np.float64(2), True, np.bool_(True), "3", None], ids=repr)
@pytest.mark.parametrize("name", EVERY)
def test_what_is_no_integer_is_refused_in_one_sentence(name, seed) -> None:
    with pytest.raises(ValueError, match=r"^seed (is|= ).*(it must be an integer|whole number)"):
        EVERY[name](seed)


@given(st.integers(-(2**31), 2**31 - 1), st.text("ab1-"))
def test_keys_of_equal_values_are_equal_and_of_others_are_not(number, text) -> None:
    assert derive_seed(np.int32(number), text) == derive_seed(number, np.str_(text))
    assert derive_seed(number) != derive_seed(str(number))
    assert derive_seed(number, text) != derive_seed(text, number)


def test_the_seeds_of_existing_runs_stay() -> None:
    assert derive_seed("partition", "iid", 3) == 5417229198138775625
