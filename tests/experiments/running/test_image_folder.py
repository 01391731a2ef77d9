"""Runs, plans and reports on an image folder."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.reporting.gate import sanity_gate
from experiments.reporting.origin import check_origin
from experiments.reporting.records import Record, read_records
from experiments.running.cells import identity
from experiments.running.presets import load_table
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.finished import export_run, load_run
from fedta_app.training.datasets import find_dataset
from fedta_app.training.workspace import shared_workspace

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def forgotten() -> None:
    shared_workspace.cache_clear()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder with `tints`: noise of one of three tints, 36 images to train on and 9 for test."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 3)):
        for c, name in enumerate(["cyan", "pink", "white"]):
            folder = tmp_path / "data" / "tints" / split / name
            folder.mkdir(parents=True)
            for k in range(number):
                pixels = rng.integers(0, 200, (9 + k, 12, 3), dtype=np.uint8)
                pixels[..., c] //= 2
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return tmp_path / "data"


def arguments(
    data_dir: Path, selection: str, *values: str, command: str = "run", engine: str = "in-process"
) -> list[str]:
    common = [
        "dataset=folder", "image-folder=tints", "model=cnn", "weights=random", "image-size=8",
        "num-clients=3", "fraction-train=0.7", "num-server-rounds=2", "eval-every=1", "threads=1",
        "calibration-rounds=1", "head-temperature=1.0", "local-steps=1", "batch-size=4",
        "device=cpu",
    ]  # fmt: skip
    folders = ["--data-dir", str(data_dir), "--results-dir", str(data_dir.parent / "runs")]
    common.append(f"cache-dir={data_dir.parent / 'cache'}")
    pairs = {pair.partition("=")[0]: pair for pair in [*common, *values]}
    sets = [f"--set={pair}" for pair in pairs.values()]
    return [command, selection, "--engine", engine, *folders, *sets]


def run(*parts: Any, **options: str) -> ExitStatus:
    return main(arguments(*parts, **options))


def summary(data_dir: Path, name: str = "cell") -> dict[str, Any]:
    path = data_dir.parent / "runs" / name / "seed0" / "summary.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize(
    "values",
    [
        ["partition=iid", "head=random", "mask-rule=none", "strategy=fedavg"],
        ["partition=classes", "num-classes-per-client=2"],
        ["partition=dirichlet", "mask-scope=client"],
    ],
)
def test_a_federation_trains_on_a_folder(data_dir: Path, values: list[str]) -> None:
    assert run(data_dir, "demo/masked", "name=cell", *values) == ExitStatus.FINISHED
    found = summary(data_dir)
    facts = found["data"]
    assert (facts["name"], found["model"]["classes"], facts["test-images"]) == ("tints", 3, 9)
    assert facts["training-images"] + facts["validation-images"] == 36
    assert facts["note"].startswith("tints: 3 classes; training and validation images from train")
    assert len(found["identity"]["data-sha256"]) == 64


def test_a_run_without_a_federation_has_the_same_images(data_dir: Path) -> None:
    assert run(data_dir, "demo/masked", "name=cell") == ExitStatus.FINISHED
    quick = ["num-server-rounds=1", "local-steps=1", "batch-size=4", "eval-every=1"]
    sets = ["dataset=folder", "image-folder=tints", "model=cnn", "weights=random", "image-size=8"]
    sets.append(f"cache-dir={data_dir.parent / 'cache'}")
    status = main(
        ["run", "centralized/constant", "--scale", "tiny", "--seeds", "1", "--data-dir",
         str(data_dir), "--results-dir", str(data_dir.parent / "runs"),
         *[f"--set={pair}" for pair in [*sets, *quick, "name=alone", "device=cpu"]]]
    )  # fmt: skip
    assert status == ExitStatus.FINISHED
    digests = {summary(data_dir, name)["identity"]["data-sha256"] for name in ("cell", "alone")}
    assert len(digests) == 1


def test_a_finished_model_knows_the_names_of_its_classes_and_how_files_are_read(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        (data_dir / "tints" / split / "pink").rename(data_dir / "tints" / split / "pale, pink")
    assert run(data_dir, "demo/masked", "name=cell") == ExitStatus.FINISHED
    shutil.rmtree(data_dir.parent / "cache")
    cell = data_dir.parent / "runs" / "cell" / "seed0"
    names = ["cyan", "pale, pink", "white"]
    assert load_run(cell).kept("last").facts["model"]["class-names"] == names
    capsys.readouterr()
    assert main(["evaluate", str(cell)]) == 0
    lowest = json.loads((cell / "evaluation/last-test/summary.json").read_text())["classes"]
    assert lowest["lowest"]["of"] in names
    assert f"(class {lowest['lowest']['of']})" in capsys.readouterr().out
    for file in ("classes.csv", "confusion.csv"):
        with (cell / "evaluation/last-test" / file).open() as stream:
            header, *rows = csv.reader(stream)
        assert [row[0] for row in rows] == names
    assert header == ["class", *names]
    moved = data_dir.rename(data_dir.with_name("moved"))
    assert main(["evaluate", str(cell), "--data-dir", str(moved)]) == 0
    made = export_run(load_run(cell), moved / "out.safetensors")
    assert "Classes, in the order of the model's outputs: `cyan`, `pale, pink`, `white`." in (
        made.card.read_text()
    )
    assert "exif_transpose" in made.code and made.code.rpartition("def")[2] in made.card.read_text()


@pytest.mark.slow
def test_flowers_engine_ends_at_the_same_weights(data_dir: Path) -> None:
    shas = set()
    for engine in ("in-process", "flower"):
        # A folder of its own: a cell that is finished under another name is not run again.
        runs = data_dir.parent / engine / "runs"
        command = arguments(data_dir, "demo/masked", engine=engine)
        command += ["--results-dir", str(runs)]
        subprocess.run(
            [sys.executable, "-m", "experiments", *command, "--no-resume"],
            check=True,
            cwd=ROOT,
            timeout=280,
        )
        found = json.loads((runs / "demo/masked/seed0/summary.json").read_text())
        shas.add(found["final-weights-sha256"])
    assert len(shas) == 1


def test_a_run_goes_on_only_with_the_same_images(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data_dir, "demo/masked", "name=cell", "max-minutes=1e-9") == ExitStatus.STOPPED
    Image.new("RGB", (9, 9)).save(data_dir / "tints/train/pink/new.png")
    shared_workspace.cache_clear()
    assert run(data_dir, "demo/masked", "name=cell") != ExitStatus.FINISHED
    assert "data-sha256" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (["image-folder=other"], "there is no folder"),
        (["partition=classes", "num-classes-per-client=5"], "dataset = 'folder': it has 3 classes"),
        (["partition=classes", "num-clients=2"], "together they hold 2 of the 3 classes"),
        (["num-clients=400"], "num-clients must be"),
        (["model=vit_digit"], "did you mean vit_digits"),
        (["weights=/nowhere.pth"], "there is no such file"),
    ],
)
def test_what_cannot_be_is_refused_before_an_image_is_read(
    data_dir: Path, values: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["image-size=0"] if "model=vit_digit" in values else []
    common = ["num-classes-per-client=1", *values, *extra]
    last = {pair.partition("=")[0]: pair for pair in common}
    assert run(data_dir, "demo/masked", "name=cell", *last.values()) == ExitStatus.REFUSED
    said = capsys.readouterr()
    assert sentence in said.err
    assert "decoding" not in said.out or "num-clients" in sentence


def test_a_plan_measures_it(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data_dir, "demo/masked", command="plan") == ExitStatus.FINISHED
    assert "1 cell, 0 finished" in capsys.readouterr().out


def test_records_are_reported_where_the_folder_is_not(data_dir: Path) -> None:
    assert run(data_dir, "demo") == ExitStatus.FINISHED
    results = data_dir.parent / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.commands.collect.RESULTS", results)
        assert run(data_dir, "demo", command="collect") == ExitStatus.FINISHED
    shutil.rmtree(data_dir)
    records = read_records(load_table("demo"), results)
    check = sanity_gate(records)[0]
    assert check.name == "round 0 is above chance" and check.holds is not None
    text = (results / "demo/cells/masked/seed0/config.toml").read_text()
    assert 'image-folder = "tints"' in text
    assert [note for note in _notes(records, results) if "image-folder = 'tints'" in note]


def _notes(records: list[Record], results: Path) -> list[str]:
    for record in records:  # as if this checkout were committed
        for code in [record.summary["code"], *(s["code"] for s in record.summary["sessions"])]:
            code["changed"] = False
    return check_origin(records, results / "demo")


@pytest.mark.parametrize("where", ["tints", "~/data/tints", "{home}/data/tints", "../data/tints"])
def test_a_folder_is_named_in_data_dir_or_by_its_path(
    data_dir: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(data_dir.parent))
    elsewhere = str(data_dir if where == "tints" else data_dir.parent / "nothing")
    folder = where.format(home=data_dir.parent)
    if ".." in where:
        with pytest.raises(ConfigError, match="image-folder is the name of a folder in data-dir"):
            RunConfig.from_mapping({"image-folder": folder})
        return
    config = RunConfig(dataset="folder", image_folder=folder, data_dir=elsewhere, image_size=8)
    assert find_dataset(config).images == 36


def test_somebody_elses_home_is_refused() -> None:
    with pytest.raises(ConfigError, match="image-folder = '~nobody-has-this/x'"):
        find_dataset(RunConfig(dataset="folder", image_folder="~nobody-has-this/x"))


def test_a_cell_is_known_by_the_name_of_its_folder_not_by_its_place() -> None:
    def known(folder: str, **more: Any) -> str:
        return identity(RunConfig(dataset="folder", image_folder=folder, **more))

    assert known("/a/photos") == known("/b/photos") == known("photos", data_dir="/c")
    assert known("~/photos") == known("photos")
    assert len({known("photos"), known("x/photos"), known("flowers")}) == 3
    # Nothing reads it for another data set: cells that were run before it was a key are the same.
    assert identity(RunConfig(image_folder="photos")) == identity(RunConfig())
