import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fedta_app.config import RunConfig
from fedta_app.errors import CheckpointError
from fedta_app.runs.checkpoint import (
    Checkpoint,
    check_format,
    kept_values,
    load_checkpoint,
    save_checkpoint,
)
from fedta_app.runs.directory import run_path
from fedta_app.runs.session import RunSession


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"weights": torch.full((5,), float(step)), "round": step, "x": 0.1})


def test_what_is_saved_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    values = torch.tensor([-0.0, 1e-45, float("inf"), 1 / 3])
    state = {
        "loss": 1 / 3,
        "parts": {"server": {"weights": values, "mask": None}, "phase/train": {}},
        "rows": [{"round": 1}],
    }
    save_checkpoint(tmp_path, Checkpoint(1, state))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    weights = loaded.state["parts"]["server"].pop("weights")
    assert weights.view(torch.int32).equal(values.view(torch.int32))
    del state["parts"]["server"]["weights"]  # type: ignore[index]
    assert loaded.state == state


def test_values_are_read_without_tensors_from_every_kept_checkpoint(tmp_path: Path) -> None:
    assert kept_values(tmp_path) == []
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, checkpoint(step))
    (tmp_path / "step-000002/weights.safetensors").unlink()
    assert [state["round"] for state in kept_values(tmp_path)] == [2, 3]
    (tmp_path / "step-000003/state.json").write_text("{")
    assert [state["round"] for state in kept_values(tmp_path)] == [2]


@pytest.mark.parametrize("change", ["left over", "missing"])
def test_tensors_and_their_places_must_agree(tmp_path: Path, change: str) -> None:
    """Files whose hashes are right, of a state that does not fit its tensors."""
    save_checkpoint(tmp_path, checkpoint(1))
    folder = tmp_path / "step-000001"
    tensors = {"weights": torch.ones(5), "more": torch.ones(1)} if change == "left over" else {}
    weights = save(tensors)
    (folder / "weights.safetensors").write_bytes(weights)
    stored = json.loads((folder / "state.json").read_text())
    del stored["sha256"]
    stored["weights-sha256"] = hashlib.sha256(weights).hexdigest()
    text = json.dumps(stored, sort_keys=True)
    stored["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path)


def test_the_old_layout_is_refused_by_the_name_of_the_release_that_reads_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "step-000001"
    folder.mkdir()
    weights = save({"weights": torch.ones(5)})
    (folder / "weights.safetensors").write_bytes(weights)
    stored = {
        "step": 1,
        "weights-sha256": hashlib.sha256(weights).hexdigest(),
        "state": {"phase": 0, "round": 1},
    }
    text = json.dumps(stored, sort_keys=True)
    stored["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps(stored))
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    with pytest.raises(CheckpointError, match=r"was written by fedta 0\.1\.0, which reads it"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"was written by fedta 0\.1\.0, which reads it"):
        check_format(tmp_path)
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none") is None
    assert load_checkpoint(tmp_path) is None


def test_the_newest_counts_and_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 11):
        save_checkpoint(tmp_path, checkpoint(step))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000011"]


def test_a_crash_while_writing_leaves_the_previous_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    half = tmp_path / ".step-000002.tmp"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half a fi")
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 1
    save_checkpoint(tmp_path, checkpoint(2))
    assert load_checkpoint(tmp_path).step == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_damage_is_found_and_the_sentence_says_what_to_do(
    tmp_path: Path, name: str, damage: str
) -> None:
    save_checkpoint(tmp_path, checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    path = tmp_path / "step-000002" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"flip": content, "cut": content[:-3]}.get(damage, b""))
    if damage == "remove":
        path.unlink()
    with pytest.raises(CheckpointError, match=r"is damaged .*: delete that folder to continue"):
        load_checkpoint(tmp_path)


def test_a_run_with_an_old_checkpoint_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = RunConfig.from_mapping({"name": "old", "results-dir": str(tmp_path)})
    folder = run_path(config)
    save_checkpoint(folder / "checkpoint", checkpoint(1))
    state = folder / "checkpoint/step-000001/state.json"
    stored = json.loads(state.read_text())
    del stored["sha256"], stored["format"]
    text = json.dumps(stored, sort_keys=True)
    stored["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    state.write_text(json.dumps(stored))
    (folder / "config.toml").write_text("seed = 0\n")
    with pytest.raises(CheckpointError, match=r"fedta 0\.1\.0"):
        RunSession(config, total_rows=1, facts={"identity": {}})
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "config.toml"]
    assert (folder / "config.toml").read_text() == "seed = 0\n"
