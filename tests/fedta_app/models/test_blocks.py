"""A transformer in two halves."""

import pytest
import timm
import torch
from torch import nn

from fedta_app.errors import ModelError
from fedta_app.models import build_model
from fedta_app.models.blocks import split_blocks

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}


def vit(name: str = "vit_tiny_patch16_224", **more: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, num_classes=4, **{**TINY, **more})
    return model


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"global_pool": "avg"},
        {"reg_tokens": 2, "no_embed_class": True},
        {"pre_norm": True, "init_values": 0.1},
        {"class_token": False, "global_pool": "map"},
    ],
    ids=str,
)
@pytest.mark.parametrize("trained", [1, 2, 3])
def test_the_halves_compute_what_the_whole_does(more: dict[str, object], trained: int) -> None:
    model = vit(**more)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stem, tail = split_blocks("vit", model, trained, images)

    assert torch.equal(tail(stem(images)), model(images))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    whole = dict(model.named_parameters())
    frozen = {id(p) for p in stem.parameters()}
    for name, parameter in tail.named_parameters():
        assert parameter is whole[name]  # trained in place, under its own name
        assert id(parameter) not in frozen
    tail_ids = {id(p) for p in tail.parameters()}
    assert tail_ids | frozen == {id(p) for p in whole.values()}
    assert not any(p.requires_grad for p in stem.parameters())
    assert all(p.requires_grad for p in tail.parameters())
    assert {name.split(".")[1] for name, _ in tail.named_parameters() if "blocks" in name} == {
        str(block) for block in range(3 - trained, 3)
    }


def test_gradients_are_those_of_the_whole_model_with_frozen_parameters() -> None:
    model, reference = vit(), vit()
    images, labels = torch.randn(5, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0])
    stem, tail = split_blocks("vit", model, 1, images)
    nn.functional.cross_entropy(tail(stem(images)), labels).backward()
    nn.functional.cross_entropy(reference(images), labels).backward()
    expected = dict(reference.named_parameters())
    for name, parameter in tail.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name


def test_the_stem_stays_in_evaluation_mode() -> None:
    images = torch.randn(2, 3, 16, 16)
    stem, _ = split_blocks("vit", vit(proj_drop_rate=0.5, pos_drop_rate=0.5), 1, images)
    stem.train()
    assert torch.equal(stem(images), stem(images))


@pytest.mark.parametrize(
    ("name", "trained", "words"),
    [
        ("cnn", 1, "only a vision transformer has such blocks"),
        ("vit_digits", 5, "it has 4 blocks"),
        ("vit_digits", -1, "it has 4 blocks"),
    ],
)
def test_what_cannot_be_split_is_refused(name: str, trained: int, words: str) -> None:
    built = build_model(
        name, weights="random", image_size=8 if name == "vit_digits" else 32, num_classes=10,
        in_channels=1, seed=0,
    )  # fmt: skip
    with pytest.raises(ModelError, match=f"trained-blocks = {trained} is not allowed.*{words}"):
        split_blocks(
            name, built.model, trained, torch.zeros(1, 1, built.image_size, built.image_size)
        )


def test_a_transformer_that_computes_more_than_its_blocks_is_refused() -> None:
    model = vit()
    original = model.forward_features
    model.forward_features = lambda images: original(images) + 1  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be split"):
        split_blocks("odd", model, 1, torch.zeros(1, 3, 16, 16))
