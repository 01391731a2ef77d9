import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from experiments.pretraining import cifar as pretrain_cifar
from experiments.pretraining.cifar import main
from experiments.pretraining.cifar10 import read_cifar10
from experiments.pretraining.learners import new_backbone
from experiments.pretraining.loop import learning_rate_share
from experiments.pretraining.probes import embed, knn_accuracy, ridge_accuracy
from fedta_app.data.loading import DataSplits, ImageSet
from fedta_app.errors import DataError
from fedta_app.models.building import build_model

CLASSES = ("cat", "dog")


def some_images(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Twenty-four images of two classes, told apart by their colour, and four to test on."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 2)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "data" / "cifar10" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 120, (32, 32, 3)).astype(np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(folder / f"{index:05d}.png")
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def small_cifar100(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> DataSplits:
        images = some_images(30)
        part = ImageSet(images, torch.arange(30) % 3)
        statistics = ((0.5,) * 3, (0.25,) * 3)
        return DataSplits("cifar100", 3, part, part, part, *statistics, 4, True, "")

    monkeypatch.setattr(pretrain_cifar, "load_data", load)


def train(data: Path, folder: Path, *options: str) -> int:
    places = ["--data-dir", str(data), "--out", str(folder / "w.safetensors")]
    quick = ["--batch-size", "8", "--epochs", "2", "--threads", "1", "--device", "cpu"]
    return main([*places, *quick, *options])


@pytest.mark.parametrize("method", ["supervised", pytest.param("dino", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_the_same_bits(data_dir, tmp_path, method, capsys):
    options = ("--method", method, "--knn-every", "2")
    assert train(data_dir, tmp_path / "whole", *options) == 0
    for step in range(1, 7):  # each process is over after one step
        status = train(data_dir, tmp_path / "parts", *options, "--max-minutes", "1e-15")
        assert status == (0 if step == 6 else 3)
    assert "going on after step 1 of 6" in capsys.readouterr().out
    whole, parts = (tmp_path / name / "w.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    curves = [
        pd.read_csv(file.with_suffix(".state") / "curve.csv").drop(
            columns=["minutes", "cpu_minutes"]
        )
        for file in (whole, parts)
    ]
    pd.testing.assert_frame_equal(*curves)
    assert curves[0]["step"].tolist() == [0, 3, 6]
    assert curves[0]["knn"].notna().tolist() == [True, False, True]


@pytest.mark.draws
@pytest.mark.parametrize("method", ["dino", "supervised"])
def test_the_file_loads_and_says_what_it_is(data_dir, tmp_path, method):
    assert train(data_dir, tmp_path, "--method", method, "--seed", "7") == 0
    file = tmp_path / "w.safetensors"
    assert file.stat().st_size < 8e6
    with safe_open(file, "pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
    assert set(metadata) == {"about"}
    about = json.loads(metadata["about"])
    assert f"--method {method}" in about["command"] and "--seed 7" in about["command"]
    assert set(about["measured"]) >= {"CIFAR-100, 20-nn", "CIFAR-100, ridge, random weights"}
    assert str(tmp_path) not in metadata["about"]
    options = {"image_size": 0, "num_classes": 100, "in_channels": 3, "seed": 0}
    built = build_model("vit_cifar", weights=str(file), **options)
    assert not built.source.head_loaded
    assert names == {name for name in built.model.state_dict() if not name.startswith("head.")}
    start = new_backbone(2, seed=7).state_dict()["cls_token"]
    assert not torch.allclose(built.model.cls_token, start, atol=1e-6)  # it was trained
    summary = json.loads((tmp_path / "w.state" / "summary.json").read_text())
    assert len(summary["sha256"]) == 64
    with Image.open(tmp_path / "w.state" / "curve.png") as figure:
        assert figure.width > figure.height > 300


def test_a_checkpoint_of_another_run_is_refused(data_dir, tmp_path, capsys):
    assert train(data_dir, tmp_path, "--max-minutes", "1e-15") == 3
    assert train(data_dir, tmp_path, "--seed", "1") == 2
    assert "other seed: delete it" in capsys.readouterr().err
    (tmp_path / "w.state" / "checkpoint.pt").write_bytes(b"rubbish")
    assert train(data_dir, tmp_path) == 2
    assert "is no checkpoint" in capsys.readouterr().err


def test_the_rest_of_a_run_can_be_planned_anew(data_dir, tmp_path, capsys):
    assert train(data_dir, tmp_path, "--epochs", "9", "--max-minutes", "1e-15") == 3
    assert train(data_dir, tmp_path, "--epochs", "2") == 0
    summary = json.loads((tmp_path / "w.state" / "summary.json").read_text())
    assert summary["plans"] == [[0, 9], [1, 2]] and summary["epochs"] == 2
    curve = pd.read_csv(tmp_path / "w.state" / "curve.csv")
    assert curve["step"].tolist() == [0, 3, 6] and curve["lr"].iloc[-1] == 0
    assert train(data_dir, tmp_path, "--epochs", "1") == 2
    assert "more than 1 epochs behind it" in capsys.readouterr().err


def test_bad_input_is_refused_in_a_sentence(data_dir, tmp_path, capsys):
    assert train(tmp_path / "nowhere", tmp_path) == 2
    assert "CIFAR-10 is not in" in capsys.readouterr().err
    assert train(data_dir, tmp_path, "--batch-size", "25") == 2
    assert "no whole batch" in capsys.readouterr().err
    assert train(data_dir, tmp_path, "--epochs", "0") == 2
    assert not (tmp_path / "w.safetensors").exists()


def test_plain_images_are_read_in_name_order(data_dir):
    seen, held_out, source = read_cifar10(data_dir)
    assert seen.images.shape == (24, 3, 32, 32) and seen.images.dtype == torch.uint8
    assert seen.labels.tolist() == [0] * 12 + [1] * 12 and len(held_out) == 4
    assert source.endswith("(png)")
    with Image.open(data_dir / "cifar10/train/dog/00003.png") as image:
        pixels = torch.from_numpy(np.asarray(image).copy())
    assert torch.equal(seen.images[15], pixels.permute(2, 0, 1))


def test_damaged_and_foreign_images_are_refused(data_dir):
    file = data_dir / "cifar10/test/dog/00001.png"
    Image.new("RGB", (16, 16)).save(file)
    with pytest.raises(DataError, match="not 32 pixels"):
        read_cifar10(data_dir)
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        read_cifar10(data_dir)
    (data_dir / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="cifar-10-batches-py cannot be read"):
        read_cifar10(data_dir)


def test_the_learning_rate_rises_and_falls():
    shares = [learning_rate_share((step + 1) / 100) for step in range(100)]
    assert max(shares) == pytest.approx(1) and shares.index(max(shares)) == 9
    assert shares[0] == pytest.approx(0.1) and shares[-1] == pytest.approx(0)
    assert shares[10:] == sorted(shares[10:], reverse=True)


def test_probes_tell_clusters_apart():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    points = 5 * torch.eye(4, 8)[labels] + torch.randn(200, 8, generator=generator)
    halves = (points[:100], labels[:100], points[100:], labels[100:])
    shuffled = labels[torch.randperm(200, generator=generator)]
    chance = (points[:100], shuffled[:100], points[100:], shuffled[100:])
    for accuracy in (knn_accuracy, ridge_accuracy):
        assert accuracy(*halves) > 0.97
        assert accuracy(*chance) < 0.45


def test_nearest_neighbours_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    known, asked = torch.randn(60, 5, generator=generator), torch.randn(40, 5, generator=generator)
    known_labels = torch.randint(0, 3, (60,), generator=generator)
    asked_labels = torch.randint(0, 3, (40,), generator=generator)
    right = 0
    for point, label in zip(asked, asked_labels, strict=True):
        cosines = torch.cosine_similarity(known, point[None])
        votes = [0.0] * 3
        for index in cosines.argsort(descending=True)[:20]:
            votes[int(known_labels[index])] += float(torch.exp(cosines[index] / 0.07))
        right += votes.index(max(votes)) == label
    assert knn_accuracy(known, known_labels, asked, asked_labels) == pytest.approx(right / 40)


def test_features_are_those_of_the_model_in_eval_mode():
    model = new_backbone(3, seed=0).train()
    images = some_images(6)
    seen = embed(model, images, (0.5,) * 3, (0.25,) * 3)
    assert seen.shape == (6, 192) and not seen.requires_grad and model.training
    normal = build_model(
        "vit_cifar", weights="random", image_size=0, num_classes=3, in_channels=3, seed=0
    ).model.eval()
    expected = normal.forward_head(
        normal.forward_features((images / 255 - 0.5) / 0.25), pre_logits=True
    )
    torch.testing.assert_close(seen, expected.detach())  # with the fused attention
