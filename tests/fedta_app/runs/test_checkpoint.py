from pathlib import Path

import pytest
import torch

from fedta_app.errors import CheckpointError
from fedta_app.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"weights": torch.full((5,), float(step))}, {"round": step, "x": 0.1})


def test_what_is_saved_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    values = torch.tensor([-0.0, 1e-45, float("inf"), 1 / 3])
    save_checkpoint(tmp_path, Checkpoint(1, {"weights": values}, {"loss": 1 / 3}))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.state == {"loss": 1 / 3}
    assert loaded.tensors["weights"].view(torch.int32).equal(values.view(torch.int32))


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
