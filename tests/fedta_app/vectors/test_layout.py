"""Named tensors as one vector and back, and what does not fit."""

import hashlib

import pytest
import torch

from fedta_app.vectors import Layout

SHAPES = {"z": (5, 9), "a": (13,), "scalar": (), "empty": (0, 3)}


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def test_a_vector_has_the_order_of_the_names_and_comes_back() -> None:
    tensors = random_tensors(0)
    layout = Layout.of(tensors)
    assert layout.size == sum(layout.sizes) == 45 + 13 + 1
    backwards = {name: tensors[name] for name in reversed(tensors)}
    vector = layout.flatten({**backwards, "other": torch.ones(4)})
    assert vector.tolist() == [v for tensor in tensors.values() for v in tensor.flatten().tolist()]
    views = layout.views(vector)
    assert list(views) == list(tensors)
    assert all(torch.equal(views[name], tensor) for name, tensor in tensors.items())
    views["a"].zero_()
    assert not vector[45:58].any()
    assert tensors["a"].any()  # flatten copies


def test_any_memory_format_and_no_gradient() -> None:
    weight = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last).weight
    layout = Layout.of({"w": weight})
    vector = layout.flatten({"w": weight})
    assert not vector.requires_grad
    assert torch.equal(layout.views(vector)["w"], weight)


def test_the_fingerprint_is_the_sha256_of_names_and_shapes() -> None:
    text = "z (5, 9)\na (13,)\nscalar ()\nempty (0, 3)"
    assert Layout.of(random_tensors(0)).fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_what_does_not_fit_is_refused() -> None:
    layout = Layout.of({"a": torch.ones(2), "b": torch.ones(1)})
    with pytest.raises(ValueError, match="scores has no entry for 'b'"):
        layout.flatten({"a": torch.ones(2)}, "scores")
    with pytest.raises(ValueError, match=r"tensors\['a'\] has shape \(3,\)"):
        layout.flatten({"a": torch.ones(3), "b": torch.ones(1)})
    with pytest.raises(ValueError, match="parameters is empty"):
        Layout.of({}).flatten({}, "parameters")
