"""The weights that come with fedta: small, honest about what they are, and of use."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from torch import nn

from experiments.pretraining.probes import embed, ridge_accuracy
from fedta_app.data.loading import load_data
from fedta_app.files import file_sha256
from fedta_app.models.building import BuiltModel, build_model, features
from fedta_app.models.committed import FOLDER

BACKBONE = Path(__file__).parents[3] / "results" / "backbone"


def build(name: str, weights: str, in_channels: int, num_classes: int = 10) -> BuiltModel:
    return build_model(
        name, weights=weights, image_size=0, num_classes=num_classes, in_channels=in_channels,
        seed=0,
    )  # fmt: skip


def about(name: str) -> dict[str, object]:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        assert not any(key.startswith("head.") for key in file.keys())  # noqa: SIM118
        told: dict[str, object] = json.loads(file.metadata()["about"])
    return told


def digits_accuracy(model: nn.Module) -> float:
    """Ridge accuracy on 597 digits, fitted on the other 1200."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    train = images[:1200]
    with torch.no_grad():
        seen = features(model.eval(), (images - train.mean()) / train.std()).numpy()
    probe = RidgeClassifier().fit(seen[:1200], digits.target[:1200])
    return float(probe.score(seen[1200:], digits.target[1200:]))


def test_the_digits_weights_help_by_far() -> None:
    pretrained = build("vit_digits", "pretrained", 1)
    accuracy = digits_accuracy(pretrained.model)
    assert accuracy > 0.85
    assert accuracy > digits_accuracy(build("vit_digits", "random", 1).model) + 0.25
    assert pretrained.source.kind == "pretrained" and not pretrained.source.head_loaded
    assert pretrained.warnings == () and pretrained.mean is None


def test_the_digits_weights_are_small_and_say_what_they_are() -> None:
    assert (FOLDER / "vit_digits.safetensors").stat().st_size < 1_000_000
    told = about("vit_digits")
    assert "no digits" in str(told["data"]) and "pretrain_digits" in str(told["command"])


CIFAR = [
    (path.parent.name, json.loads(path.read_text()))
    for path in sorted(BACKBONE.glob("*/summary.json"))
]


@pytest.mark.parametrize(("name", "summary"), CIFAR, ids=[name for name, _ in CIFAR])
def test_the_cifar_weights_are_those_of_their_record(name: str, summary: dict[str, object]) -> None:
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < 8_000_000
    assert file_sha256(path) == summary["sha256"]
    told = about(name)
    assert told == {key: summary[key] for key in told}
    assert told["model"] == "vit_cifar" and "CIFAR-10" in str(told["note"])
    assert told["method"] == ("supervised" if name.endswith("_supervised") else "dino")
    built = build(name, "pretrained", 3)
    assert built.source.kind == "pretrained" and built.source.sha256 == summary["sha256"]


@pytest.mark.slow
def test_the_cifar_weights_help(cifar100_dir: Path) -> None:
    splits = load_data("cifar100", str(cifar100_dir), val_size=0.1, seed=0)
    found = []
    for name, weights in [("vit_cifar", "random"), *((name, "pretrained") for name, _ in CIFAR)]:
        model = build(name, weights, 3, num_classes=100).model
        parts = []
        for images in (splits.train, splits.test):
            chosen = images.subset(torch.arange(0, len(images), max(1, len(images) // 2000)))
            parts += [embed(model, chosen.images, splits.mean, splits.std), chosen.labels]
        found.append(ridge_accuracy(*parts))
    assert len(found) == 3 and min(found[1:]) > found[0] + 0.02
