"""An exported model loads without fedta, or with its models alone, and is right as often."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from client_app.app import app as client_app
from engine.client_memory import forget_run
from engine.inprocess import run_in_process
from experiments.__main__ import main
from fedta_app.centralized import run_centralized
from fedta_app.config import RunConfig
from fedta_app.data import to_input
from fedta_app.data.decoding import decode
from fedta_app.errors import RunError
from fedta_app.finished.export import export_run, loading_code
from fedta_app.finished.reading import Run
from fedta_app.models import build_model
from fedta_app.runs.directory import run_path
from fedta_app.training.workspace import build_workspace, shared_workspace
from server_app.app import app as server_app

QUICK = {
    "name": "test", "engine": "centralized", "num-server-rounds": 2, "local-steps": 6, "lr": 0.05,
    "eval-every": 1, "threads": 1, "weights": "random",
}  # fmt: skip
TIMM = {**QUICK, "model": "test_vit", "image-size": 16}

EVALUATE = """
import json, sys
from safetensors.torch import load_file as load
images = load({images!r})
with torch.inference_mode():
    right = (model(preprocess(images["images"])).argmax(1) == images["labels"]).sum()
ours = sorted(name for name in sys.modules if name.split(".")[0] in ("fedta_app", "experiments"))
print(json.dumps([int(right) / len(images["labels"]), ours]))
"""


def train(folder: Path, values: dict[str, Any]) -> Run:
    shared_workspace.cache_clear()
    config = RunConfig.from_mapping({**values, "results-dir": str(folder)})
    run_centralized(config)
    return Run(run_path(config))


@pytest.mark.parametrize(("values", "library"), [(TIMM, "timm"), (QUICK, "fedta_app.models")])
def test_an_export_is_right_as_often_as_the_run_was(
    tmp_path: Path, values: dict[str, Any], library: str
) -> None:
    run = train(tmp_path, values)
    made = export_run(run, tmp_path / "out" / "model.safetensors", weights="best")
    test = build_workspace(run.config).data.test
    names: dict[str, Any] = {}
    exec(made.code, names)
    with torch.no_grad():
        predicted = names["model"](names["preprocess"](test.images)).argmax(dim=1)
    accuracy = int((predicted == test.labels).sum()) / len(test)
    assert accuracy == run.best["test_accuracy"]
    assert made.library == library and ("fedta" in made.code) == (library != "timm")
    card = made.card.read_text()
    assert made.code.replace(str(made.file), made.file.name) in card
    assert f"| test | 397 | {accuracy:.2%} |" in card
    assert str(tmp_path) not in card
    with pytest.raises(RunError, match=r"model\.safetensors exists already: choose another name"):
        export_run(run, made.file)


@pytest.mark.slow  # another process imports torch and timm
def test_an_export_loads_in_plain_timm_without_fedta(tmp_path: Path) -> None:
    run = train(tmp_path, TIMM)
    made = export_run(run, tmp_path / "model.safetensors")
    test = build_workspace(run.config).data.test
    save_file({"images": test.images, "labels": test.labels}, tmp_path / "test.safetensors")
    script = made.code + EVALUATE.format(images=str(tmp_path / "test.safetensors"))
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    accuracy, ours = json.loads(found.stdout)
    assert accuracy == run.final["test_accuracy"]
    assert not ours


@pytest.mark.parametrize(("size", "channels"), [(160, 3), (32, 3), (32, 1)])
def test_the_printed_lines_build_timms_model_and_our_inputs(
    tmp_path: Path, size: int, channels: int
) -> None:
    mean, std = [0.5, 0.4, 0.3][:channels], [0.2, 0.3, 0.25][:channels]
    model = {
        "name": "test_vit", "classes": 7, "channels": channels, "image-size": size, "mean": mean,
        "std": std,
    }  # fmt: skip
    own = timm.create_model("test_vit", num_classes=7, img_size=size, in_chans=channels).eval()
    path = tmp_path / 'it\'s a "model".safetensors'
    save_file(own.state_dict(), path)
    names: dict[str, Any] = {}
    exec(loading_code(model, str(path)), names)
    images = torch.randint(0, 256, (2, channels, 32, 32), dtype=torch.uint8)
    inputs = names["preprocess"](images)
    assert torch.equal(inputs, to_input(images, size=size, mean=mean, std=std))
    with torch.no_grad():
        assert torch.equal(names["model"](inputs), own(inputs))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_the_printed_lines_decode_files_as_the_training_does(tmp_path: Path, mode: str) -> None:
    """A photo is no square, and may lie on its side."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 81, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels, "RGBA").convert(mode).save(tmp_path / "photo.png", exif=exif)
    model = {
        "name": "cnn", "classes": 3, "channels": 3, "image-size": 16, "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
    }  # fmt: skip
    own = build_model("cnn", weights="random", image_size=16, num_classes=3, in_channels=3, seed=0)
    save_file(own.model.state_dict(), tmp_path / "model.safetensors")
    names: dict[str, Any] = {}
    exec(loading_code(model, str(tmp_path / "model.safetensors"), of_files=True), names)
    inputs = names["preprocess"]([tmp_path / "photo.png"])
    image = torch.from_numpy(decode(tmp_path / "photo.png", 16)[None].copy())
    expected = to_input(image, size=16, mean=model["mean"], std=model["std"])
    assert torch.allclose(inputs, expected, atol=1e-6)


def test_a_card_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    run = train(tmp_path, {**QUICK, "weights": "pretrained", "measure-test": "end", "seed": 4})
    last = export_run(run, tmp_path / "last.safetensors").card.read_text()
    assert "| test | 397 |" in last and "(`fedta evaluate` does)" in last
    assert "comes with fedta (Apache-2.0) and was pre-trained on letters A-Z" in last
    assert "seed 4" in last and run.summary["code"]["sha256"] in last
    assert "Centralised: one optimizer on all training images." in last
    if run.best["round"] != 2:
        best = export_run(run, tmp_path / "best.safetensors", weights="best").card.read_text()
        assert "did not measure these weights on test images" in best
        assert "chosen among 3 by validation accuracy" in best and "| test |" not in best


def test_a_card_says_whether_the_head_was_solved_again(tmp_path: Path) -> None:
    values = {**QUICK, "engine": "in-process", "head": "ridge", "mask-rule": "random"}
    for refresh in (0, 1):
        more = {"num-server-rounds": 1, "head-refresh": refresh, "name": f"every-{refresh}"}
        config = {**values, **more, "results-dir": str(tmp_path)}
        forget_run()
        run_in_process(server_app, client_app, config, 10)
        run = Run(run_path(RunConfig.from_mapping(config)))
        card = export_run(run, tmp_path / f"{refresh}/model.safetensors").card.read_text()
        assert ("the others, and the head, were frozen" in card) is not bool(refresh)
        assert ("not trained, but solved again every 1 rounds" in card) is bool(refresh)


def test_a_card_says_that_layers_of_clients_own_are_not_in_the_model(tmp_path: Path) -> None:
    values = {**QUICK, "engine": "in-process", "personal-layers": "head", "num-server-rounds": 1}
    forget_run()
    run_in_process(server_app, client_app, {**values, "results-dir": str(tmp_path)}, 10)
    run = Run(run_path(RunConfig.from_mapping({**values, "results-dir": str(tmp_path)})))
    card = export_run(run, tmp_path / "out/model.safetensors").card.read_text()
    assert "(`personal-layers = 'head'`) are not in it: in their places" in card


def test_the_commands_print_and_write_what_they_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, QUICK)
    capsys.readouterr()
    assert main(["evaluate", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert f"on 397 test images: accuracy {run.final['test_accuracy']:.2%}, loss" in printed
    assert "clients" not in printed
    assert main(["evaluate", str(run.path), "--weights", "best", "--split", "validation"]) == 0
    assert {path.name for path in (run.path / "evaluation").iterdir()} == {
        "last-test", "best-validation"
    }  # fmt: skip
    assert main(["export", str(run.path), str(tmp_path / "a.safetensors")]) == 0
    assert "It loads with fedta_app.models:" in capsys.readouterr().out
    assert "test accuracy over 10 classes: mean" in (tmp_path / "a.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "nowhere"], "nowhere is no run directory: there is no such folder"),
        (["export", "nowhere", "a.safetensors"], "nowhere is no run directory"),
        (["evaluate", "~nobody-here/x"], "there is no home folder ~nobody-here on this machine"),
        (["export", "{run}", "~nobody-here/a.safetensors"], "there is no home folder ~nobody-here"),
        (["export", "{run}", "a.pth"], "a.pth is not allowed: the name of the file ends in"),
        (["evaluate", "{run}", "--device", "cuda:77"], "device = 'cuda:77' is not allowed"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "{run}" in arguments:
        run = train(tmp_path, {**QUICK, "num-server-rounds": 1, "local-steps": 1})
        arguments = [word.replace("{run}", str(run.path)) for word in arguments]
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence in error
