"""The table of text: complete, and the same bits through both engines and after `kill -9`."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.reporting.frames import check_comparison
from experiments.running.presets import load_table
from experiments.running.scales import load_scale, scales
from fedta_app.errors import ConfigError
from tests.experiments.running.killing import kill_after
from tests.roles import write_roles

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("scale", ["", "small", "tiny"])
def test_the_table_reads_text_at_every_scale(scale: str) -> None:
    table = load_table("shakespeare", scale)
    found = {preset.name: preset.config({}) for preset in table.presets}
    strategies = ("fedavg", "fedprox", "scaffold", "fedadam")
    assert set(found) == {
        f"{name}-{how}" for name in strategies for how in ("dense", "frozen", "sparse")
    }
    for config in found.values():
        assert (config.dataset, config.model, config.partition) == (
            "shakespeare", "char_lstm", "natural"
        )  # fmt: skip
        assert (config.image_size, config.trained_blocks, config.measure_test) == (0, 0, "end")
        assert config.num_server_rounds == {"": 200, "small": 20, "tiny": 2}[scale]
    check_comparison(table)
    assert table.seeds >= 3 or scale == "tiny"


def test_what_a_table_says_of_a_scale_stands_in_place_of_the_scales_file() -> None:
    own, shared = load_table("shakespeare", "small").scale, load_scale("small")
    assert own is not None
    assert own.name == shared.name and own.caption != shared.caption
    assert own.rounds == 1.0 and not own.exclude and not own.weights_command
    assert load_table("six-models", "small").scale == shared
    assert load_table("shakespeare", "blocks").scale == load_scale("blocks")


def test_a_table_cannot_describe_a_scale_that_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.running import presets

    (tmp_path / "one").mkdir()
    (tmp_path / "one/table.toml").write_text("[scales.huge]\nrounds = 9.0\n")
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match="describes a scale 'huge'; scales are: blocks, small"):
        load_table("one")
    assert "huge" not in scales()


def command(folder: Path, name: str, engine: str) -> list[str]:
    settings = {
        "name": name, "num-server-rounds": 8, "local-steps": 1, "batch-size": 4, "eval-every": 4,
        "checkpoint-every": 2,
    }  # fmt: skip
    sets = [f"--set={key}={value}" for key, value in settings.items()]
    return [
        sys.executable, "-m", "experiments", "run", "shakespeare/scaffold-sparse", "--scale",
        "tiny", "--seeds", "1", "--engine", engine, "--data-dir", str(folder), "--results-dir",
        str(folder), *sets,
    ]  # fmt: skip


def finish(folder: Path, name: str, engine: str) -> dict[str, Any]:
    done = subprocess.run(
        command(folder, name, engine), cwd=ROOT, timeout=280, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads((folder / name / "seed0/summary.json").read_text())
    assert summary["status"] == "finished"
    return summary


def rounds_done(folder: Path) -> int:
    try:
        with (folder / "killed/seed0/metrics.csv").open() as stream:
            rows = [row for row in csv.DictReader(stream) if row["phase"] == "train"]
            return max((int(row["round"]) for row in rows), default=0)
    except FileNotFoundError:
        return 0


def kill_after_round(folder: Path, server_round: int) -> None:
    words = command(folder, "killed", "in-process")
    kill_after(words, ROOT, lambda: rounds_done(folder), server_round)
    assert rounds_done(folder) < 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_roles(tmp_path_factory.mktemp("roles"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """SCAFFOLD with a mask by sensitivity: state on clients and server, scores, a probe."""
    return finish(folder, "whole", "in-process")


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("final-weights-sha256", "initial-weights-sha256", "mask", "bytes-up"):
        assert found[key] == expected[key], key


@pytest.mark.slow
def test_text_ends_at_the_same_weights_after_a_kill(folder: Path, whole: dict[str, Any]) -> None:
    kill_after_round(folder, 3)
    resumed = finish(folder, "killed", "in-process")
    assert len(resumed["sessions"]) > 1
    check_same(resumed, whole)


@pytest.mark.slow
def test_text_ends_at_the_same_weights_on_flowers_engine(
    folder: Path, whole: dict[str, Any]
) -> None:
    check_same(finish(folder, "flower", "flower"), whole)
