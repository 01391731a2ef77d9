import hashlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fedta_app.errors import ModelError
from fedta_app.models import building as models
from fedta_app.models.building import build_model, features, num_features
from tests.fedta_app.models.dino_files import class_token_features, official_state

OWN = ("vit_digits", "vit_cifar", "cnn", "resnet_gn")
DINO = "vit_small_patch16_224.dino"
MULTIPLES = {"vit_digits": 2, "vit_cifar": 4, "cnn": 4, "resnet_gn": 1}


def build(name, **changes):
    options = {"weights": "random", "image_size": 0, "num_classes": 10, "in_channels": 3, "seed": 0}
    return build_model(name, **(options | changes))


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.fixture(scope="module")
def dino_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "dino_deitsmall16_pretrain.pth"
    torch.save(official_state(), path)
    return path


@pytest.mark.parametrize(
    ("name", "image_size", "in_channels", "num_classes", "parameters"),
    [
        ("cnn", 28, 1, 10, 1_663_370),  # the number that McMahan et al. give for MNIST
        ("cnn", 32, 3, 100, 2_202_660),
        ("vit_digits", 8, 1, 10, 136_138),
        ("vit_cifar", 32, 3, 100, 1_823_908),
        ("resnet_gn", 32, 3, 100, 2_820_740),
        (DINO, 224, 3, 1000, 21_665_664 + 385_000),  # DINO's ViT-S/16, and a head
    ],
)
def test_numbers_of_parameters(name, image_size, in_channels, num_classes, parameters):
    built = build(name, image_size=image_size, in_channels=in_channels, num_classes=num_classes)
    assert sum(p.numel() for p in built.model.parameters()) == parameters


@pytest.mark.parametrize("name", [*OWN, "test_vit", "test_convnext"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_head_sees_the_features(name, in_channels):
    built = build(name, in_channels=in_channels, num_classes=7)
    model = built.model.eval()
    images = torch.rand(3, in_channels, built.image_size, built.image_size)
    parameters = dict(model.named_parameters())
    weight, bias = parameters[f"{built.head}.weight"], parameters[f"{built.head}.bias"]
    assert weight.shape == (7, num_features(model))
    assert torch.allclose(features(model, images) @ weight.T + bias, model(images), atol=1e-5)
    assert features(model, images[:1]).shape == (1, num_features(model))


@pytest.mark.parametrize("name", [*OWN, "test_vit"])
def test_starts_in_train_mode_in_float32_without_buffers_that_training_changes(name):
    built = build(name)
    assert all(module.training for module in built.model.modules())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in built.model.parameters())
    assert built.model.state_dict().keys() == dict(built.model.named_parameters()).keys()


@pytest.mark.parametrize("name", OWN)
def test_every_parameter_of_our_networks_takes_part(name):
    built = build(name)
    size = built.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    built.model(images).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.model.parameters())


@pytest.mark.parametrize("name", ["resnet_gn", "cnn", "vit_cifar"])
def test_an_image_does_not_depend_on_its_batch(name):
    model = build(name).model
    images = torch.rand(4, 3, 32, 32)
    assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-5)


@pytest.mark.parametrize("name", [*OWN, DINO])
def test_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(1)
    first = build(name, seed=3)
    torch.manual_seed(2)
    again, other = build(name, seed=3), build(name, seed=4)
    assert equal(first.model.state_dict(), again.model.state_dict())
    assert first.source == again.source
    assert other.source.sha256 != first.source.sha256
    parameters = zip(first.model.parameters(), other.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in parameters)


def test_global_generators_stay_as_they_are(dino_file):
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for name, weights in [("cnn", "random"), (DINO, "random"), (DINO, str(dino_file))]:
        build(name, weights=weights, image_size=32)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_random_weights_are_said_to_be_random():
    source = build("cnn").source
    assert (source.kind, source.location) == ("random", "")
    assert not source.pretrained and not source.head_loaded


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(OWN), st.integers(1, 40), st.sampled_from([1, 2, 3]))
def test_image_sizes_are_used_or_refused_with_the_nearest(name, size, channels):
    multiple = MULTIPLES[name]
    if size % multiple == 0:
        built = build(name, image_size=size, in_channels=channels)
        assert built.image_size == size
        assert built.model(torch.zeros(2, channels, size, size)).shape == (2, 10)
        return
    with pytest.raises(ModelError) as caught:
        build(name, image_size=size, in_channels=channels)
    sentence = str(caught.value)
    above = size + multiple - size % multiple
    assert f"image-size = {size} " in sentence and f"multiple of {multiple}" in sentence
    assert str(above) in sentence and " 0," not in sentence


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("vit_smal_patch16_224", {}, "did you mean vit_small_patch16_224"),
        ("vit_small_patch16_224.dinos", {}, "did you mean vit_small_patch16_224.dino"),
        ("vit_digit", {}, "did you mean vit_digits"),
        (
            "hf-hub:timm/vit_small_patch16_224.dino",
            {},
            "is not allowed: model is char_lstm, cnn, resnet_gn",
        ),
        ("", {}, "timm.list_models"),
        ("test_resnet", {}, "batch normalisation"),
        ("deit_tiny_distilled_patch16_224", {}, "classifier is not one linear layer"),
        ("resnetv2_50x1_bit", {}, "classifier is not one linear layer"),
        (DINO, {"image_size": 100}, "multiple of 16, such as 96 or 112"),
        (DINO, {"image_size": 8}, "multiple of 16, such as 16"),
        ("test_convnext", {"image_size": 8}, "the model fails on such an image"),
        ("cnn", {"image_size": -4}, "image-size = -4"),
        ("cnn", {"num_classes": 1}, "num_classes = 1"),
        ("cnn", {"in_channels": 0}, "in_channels = 0"),
        ("cnn", {"weights": "pretrained"}, "there are no pre-trained weights of it"),
        ("vit_tiny_patch16_224", {"weights": "pretraind"}, "there is no such file"),
        ("cnn", {"weights": ""}, "there is no such file"),
    ],
)
def test_refusals_are_one_sentence(name, changes, sentence):
    with pytest.raises(ModelError, match=sentence) as caught:
        build(name, **changes)
    assert "\n" not in str(caught.value)


def test_official_dino_weights_give_dinos_features(dino_file):
    built = build(DINO, weights=str(dino_file), num_classes=100)
    state = official_state()
    loaded = {n: p for n, p in built.model.state_dict().items() if not n.startswith("head.")}
    assert equal(loaded, state)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(
            features(built.model.eval(), images), class_token_features(state, images), atol=1e-4
        )
    assert built.source.kind == "file" and built.source.location == str(dino_file)
    assert built.source.pretrained and not built.source.head_loaded
    assert built.source.sha256 == hashlib.sha256(dino_file.read_bytes()).hexdigest()
    assert (built.mean, built.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert built.warnings == ()


def test_safetensors_and_a_full_checkpoint_give_the_same_model(dino_file, tmp_path):
    state = official_state()
    save_file(state, tmp_path / "dino.safetensors")
    teacher = {f"backbone.{n}": t for n, t in state.items()}
    teacher["head.mlp.0.weight"] = torch.zeros(4, 384)
    torch.save({"teacher": teacher, "student": {}, "epoch": 100}, tmp_path / "full.pth")
    built = [
        build(DINO, weights=str(path), image_size=32).model.state_dict()
        for path in (dino_file, tmp_path / "dino.safetensors", tmp_path / "full.pth")
    ]
    assert equal(built[0], built[1]) and equal(built[0], built[2])


@pytest.mark.parametrize("size", [32, 96, 224])
def test_position_embeddings_are_resampled_to_the_image_size(dino_file, size):
    built = build(DINO, weights=str(dino_file), image_size=size)
    assert built.image_size == size
    grid, position = size // 16, built.model.pos_embed.detach()
    theirs = official_state()["pos_embed"]
    assert torch.equal(position[:, 0], theirs[:, 0])  # the class token has no place to resample
    square = theirs[:, 1:].view(1, 14, 14, 384).permute(0, 3, 1, 2)
    resampled = torch.nn.functional.interpolate(
        square, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False
    )
    expected = resampled.permute(0, 2, 3, 1).reshape(1, grid * grid, 384)
    assert torch.allclose(position[:, 1:], expected, atol=1e-6)


def test_grey_images_use_the_sum_of_the_colour_filters(dino_file):
    built = build(DINO, weights=str(dino_file), image_size=32, in_channels=1)
    summed = official_state()["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    assert torch.allclose(built.model.patch_embed.proj.weight, summed, atol=1e-6)
    assert built.mean is None and built.std is None


def test_the_head_is_the_same_whatever_the_other_weights(dino_file):
    def head(**changes):
        built = build(DINO, image_size=32, num_classes=100, **changes)
        return built.model.head.weight.detach()

    assert torch.equal(head(), head(weights=str(dino_file)))
    assert not torch.equal(head(), head(weights=str(dino_file), seed=1))
    assert 0.018 < head().std() < 0.022
    assert not build("cnn").model.head.bias.any()


def test_a_head_that_fits_is_loaded(tmp_path):
    trained = build("vit_cifar", seed=1)
    save_file(trained.model.state_dict(), tmp_path / "w.safetensors")
    built = build("vit_cifar", weights=str(tmp_path / "w.safetensors"))
    assert built.source.head_loaded
    assert equal(built.model.state_dict(), trained.model.state_dict())
    other = build("vit_cifar", weights=str(tmp_path / "w.safetensors"), num_classes=5)
    assert not other.source.head_loaded
    assert torch.equal(other.model.head.weight, build("vit_cifar", num_classes=5).model.head.weight)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (lambda: official_state(patch=8), "its patches are 8 x 8 pixels and the model's 16 x 16"),
        (lambda: official_state(depth=11), "12 missing (blocks.11.norm1.weight"),
        (lambda: official_state(depth=13), "12 left over (blocks.12.norm1.weight"),
    ],
)
def test_other_dino_files_do_not_fit(tmp_path, state, sentence):
    torch.save(state(), tmp_path / "w.pth")
    with pytest.raises(ModelError) as caught:
        build(DINO, weights=str(tmp_path / "w.pth"), image_size=32)
    assert sentence in str(caught.value)


@pytest.fixture
def hub(dino_file, monkeypatch):
    """A hub that holds one file under every name, and remembers what it was asked for."""
    asked = []

    def fetch(*arguments):
        asked.append(arguments)
        return dino_file

    monkeypatch.setattr(models, "fetch_from_hub", fetch)
    return asked


def test_pretrained_timm_weights_come_from_the_hub(hub, dino_file):
    built = build(DINO, weights="pretrained", image_size=32)
    assert hub == [("timm/vit_small_patch16_224.dino", "model.safetensors")]
    assert built.source.kind == "pretrained" and built.source.pretrained
    assert built.source.location == "timm/vit_small_patch16_224.dino (model.safetensors)"
    assert built.source.sha256 == hashlib.sha256(dino_file.read_bytes()).hexdigest()
    assert built.warnings == ()


@pytest.mark.parametrize("weights", ["pretrained", "file"])
def test_a_name_without_its_tag_is_not_dino(hub, dino_file, weights):
    path = str(dino_file) if weights == "file" else weights
    built = build("vit_small_patch16_224", weights=path, image_size=32)
    (warning,) = built.warnings
    assert "is not DINO" in warning and "vit_small_patch16_224.dino" in warning
    assert built.mean == (0.5, 0.5, 0.5)  # not the normalisation that DINO was trained with


def test_a_name_with_a_tag_and_random_weights_mislead_nobody(hub):
    tagged = "vit_small_patch16_224.augreg_in21k_ft_in1k"
    assert build(tagged, weights="pretrained", image_size=32).warnings == ()
    assert build("vit_small_patch16_224", image_size=32).warnings == ()


def test_dino_weights_have_no_classifier(tmp_path):
    state = official_state() | {
        "head.weight": torch.zeros(1000, 384),
        "head.bias": torch.zeros(1000),
    }
    torch.save(state, tmp_path / "w.pth")
    (warning,) = build(DINO, weights=str(tmp_path / "w.pth"), image_size=32).warnings
    assert "may be those of a supervised model" in warning


def test_a_model_without_published_weights_is_refused():
    with pytest.raises(ModelError, match="there are no pre-trained weights of it"):
        build("gmlp_ti16_224", weights="pretrained")
