"""Task arithmetic and densities by hand."""

import dataclasses

import pytest
import timm
import torch
from torch import Tensor

from fedta_app.analysis import TaskVector, block_density, disentanglement_error


def vector(*values: float) -> TaskVector:
    """Return a vector whose entries lie in two tensors, so that every sum crosses both."""
    return TaskVector({"a": torch.tensor(values[:1]), "b": torch.tensor(values[1:])})


def entries(task: TaskVector) -> list[float]:
    return [number for value in task.tensors.values() for number in value.flatten().tolist()]


# --- arithmetic


def test_from_weights_is_finetuned_minus_pretrained_and_skips_counters() -> None:
    pretrained = {"w": torch.tensor([1.0, 2.0]), "steps": torch.tensor(3)}
    finetuned = {"w": torch.tensor([1.5, 2.0]), "steps": torch.tensor(9)}
    task = TaskVector.from_weights(pretrained, finetuned)
    assert set(task.tensors) == {"w"}
    assert task.tensors["w"].tolist() == [0.5, 0.0]
    weights = task.apply_to(pretrained, scale=-2.0)
    assert weights["w"].tolist() == [0.0, 2.0]
    assert weights["steps"].item() == 3
    weights["w"].zero_()
    weights["steps"].zero_()
    assert pretrained["w"].tolist() == [1.0, 2.0]
    assert pretrained["steps"].item() == 3


def test_arithmetic_by_hand() -> None:
    one, two = vector(1.0, -2.0, 0.0), vector(0.5, 4.0, 1.0)
    assert entries(one + two) == [1.5, 2.0, 1.0]
    assert entries(one - two) == [0.5, -6.0, -1.0]
    assert entries(-one) == [-1.0, 2.0, 0.0]
    assert entries(one * 3) == entries(3 * one) == [3.0, -6.0, 0.0]
    assert entries(sum([one, two, one])) == [2.5, 0.0, 1.0]
    assert entries(one) == one.flat().tolist() == [1.0, -2.0, 0.0]
    assert vector(3.0, 0.0, -4.0).norm() == 5.0


def test_norm_does_not_lose_small_entries_among_many() -> None:
    many = TaskVector({"w": torch.full((2**20,), 1e-3)})
    assert many.norm() == pytest.approx(float(torch.tensor(1e-3)) * 2**10, rel=1e-12)


def test_a_task_vector_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        vector(1.0, 2.0).tensors = {}  # type: ignore[misc]


def test_negation_forgets_and_zero_entries_keep_their_bits() -> None:
    pretrained = {"w": torch.tensor([0.3, -0.0, 1e-42])}
    finetuned = {"w": torch.tensor([0.8, -0.0, 1e-42])}
    task = TaskVector.from_weights(pretrained, finetuned)
    torch.testing.assert_close(task.apply_to(pretrained)["w"], finetuned["w"])
    there_and_back = (-task).apply_to(task.apply_to(pretrained))["w"]
    torch.testing.assert_close(there_and_back, pretrained["w"])
    kept = there_and_back[1:].view(torch.int32)
    assert torch.equal(kept, pretrained["w"][1:].view(torch.int32))


def test_parameters_that_require_gradients_give_plain_tensors() -> None:
    layer = torch.nn.Linear(2, 2)
    weights = dict(layer.named_parameters())
    task = TaskVector.from_weights(weights, {name: value + 1 for name, value in weights.items()})
    assert not any(value.requires_grad for value in task.tensors.values())
    assert not any(value.requires_grad for value in task.apply_to(weights).values())


def test_vectors_that_do_not_fit_are_refused() -> None:
    one, other = vector(1.0, 2.0), TaskVector({"a": torch.ones(1), "c": torch.ones(1)})
    longer = vector(1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="names, at 'b'"):
        one + other
    with pytest.raises(ValueError, match="names, at 'b'"):
        one - other
    with pytest.raises(ValueError, match=r"'b' has shape \(2,\); it must be \(1,\)"):
        one + longer
    with pytest.raises(ValueError, match="names, at 'b'"):
        TaskVector.from_weights(one.tensors, other.tensors)
    with pytest.raises(ValueError, match="names, at 'b'"):
        one.apply_to(other.tensors)
    with pytest.raises(ValueError, match="another task vector"):
        3 + one


def test_block_density_of_a_vision_transformer() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=8, num_heads=2, depth=2, num_classes=0
    )
    mask = {
        name: torch.zeros(value.shape, dtype=torch.bool) for name, value in model.named_parameters()
    }
    mask["blocks.1.attn.qkv.weight"][:12] = True  # queries: 64 of 64 + 8; keys: 32 of 72
    mask["blocks.0.mlp.fc2.bias"][:] = True  # 8 of 256 + 8
    mask["cls_token"][:] = True
    mask["norm.bias"][:] = True
    table = block_density(mask)
    assert list(table) == ["embed", "blocks.0", "blocks.1", "norm"]
    assert table["embed"] == {"cls_token": 1.0, "pos_embed": 0.0, "patch_embed": 0.0}
    attention = ["attn.q", "attn.k", "attn.v", "attn.proj"]
    kinds = ["norm1", *attention, "norm2", "mlp.fc1", "mlp.fc2"]
    assert list(table["blocks.0"]) == list(table["blocks.1"]) == kinds
    assert [table["blocks.1"][kind] for kind in attention] == pytest.approx(
        [64 / 72, 32 / 72, 0, 0]
    )
    assert table["blocks.0"]["mlp.fc2"] == pytest.approx(8 / 264)
    assert table["norm"] == {"norm": 0.5}


def test_block_density_of_the_last_blocks_alone() -> None:
    mask = {
        "blocks.9.attn.proj.weight": torch.tensor([True, False]),
        "blocks.10.mlp.fc1.weight": torch.tensor([False]),
        "norm.weight": torch.tensor([True]),
    }
    table = {"attn.proj": 0.5}, {"mlp.fc1": 0.0}, {"norm": 1.0}
    assert block_density(mask) == dict(zip(("blocks.9", "blocks.10", "norm"), table, strict=True))


def test_block_density_of_another_model_is_by_module() -> None:
    mask = {
        "layer1.0.conv.weight": torch.tensor([True, True, False]),
        "layer1.0.bias": torch.tensor([True]),
        "blocks.0.conv.weight": torch.tensor([False]),
    }
    assert block_density(mask) == {"layer1": {"all": 0.75}, "blocks": {"all": 0.0}}


# --- disentanglement


def linear(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
    return inputs @ weights["w"].T


def test_disentangled_tasks_have_no_error() -> None:
    """Each task's inputs use a feature of their own, which only its own vector changes."""
    pretrained = {"w": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    first = TaskVector({"w": torch.tensor([[0.0, 0.0], [2.0, 0.0]])})
    second = TaskVector({"w": torch.tensor([[0.0, 0.0], [0.0, 2.0]])})
    inputs = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    error = disentanglement_error(linear, pretrained, [first, second], [1.0, 1.0], inputs)
    assert error == 0.0


def test_disentanglement_error_by_hand() -> None:
    """Task 2 turns class 0 into class 1 on one of task 1's four inputs, task 1 none of task 2's."""
    pretrained = {"w": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    first = TaskVector({"w": torch.zeros(2, 2)})
    second = TaskVector({"w": torch.tensor([[0.0, 0.0], [0.0, 2.0]])})
    inputs = [
        torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[0.0, 1.0]]),
    ]

    def error(*alphas: float) -> float:
        return disentanglement_error(linear, pretrained, [first, second], alphas, inputs)

    assert error(1.0, 1.0) == 0.25
    assert error(1.0, 0.4) == 0.0  # 0.8 does not outweigh 1
    assert error(5.0, 1.0) == 0.25


def test_one_task_never_disturbs_itself_and_lengths_must_agree() -> None:
    task = TaskVector({"w": torch.randn(5, 7)})
    pretrained = {name: torch.zeros_like(value) for name, value in task.tensors.items()}

    def predict(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return inputs @ weights["w"]

    assert disentanglement_error(predict, pretrained, [task], [0.7], [torch.randn(9, 5)]) == 0.0
    with pytest.raises(ValueError, match="1 vectors, 2 alphas, 1 task_inputs"):
        disentanglement_error(predict, pretrained, [task], [1.0, 1.0], [torch.ones(1, 5)])
    with pytest.raises(ValueError, match="there must be a task"):
        disentanglement_error(predict, pretrained, [], [], [])
