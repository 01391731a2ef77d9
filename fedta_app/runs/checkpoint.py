"""Checkpoints that are whole or not there: safetensors and JSON, hashed, renamed into place.

    checkpoint/step-000012/weights.safetensors
    checkpoint/step-000012/state.json           holds the sha256 of the other file and of itself

A step counts the rows of metrics.csv. The two newest are kept. No pickle is ever loaded.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedta_app.errors import CheckpointError
from fedta_app.files import file_sha256, remove_tree, sync_folder, write_atomically

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to continue: named tensors, and a state that JSON can hold."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that a crash at any moment leaves the previous one untouched."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{checkpoint.step:06d}"
    temporary = folder / f".step-{checkpoint.step:06d}.tmp"
    remove_tree(temporary)
    temporary.mkdir()
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()
    }
    weights = save(tensors)
    write_atomically(temporary / "weights.safetensors", weights)
    state = {
        "step": checkpoint.step,
        "weights-sha256": hashlib.sha256(weights).hexdigest(),
        "state": checkpoint.state,
    }
    state["sha256"] = _digest(state)
    write_atomically(temporary / "state.json", json.dumps(state, indent=1))
    remove_tree(final)
    temporary.rename(final)
    sync_folder(folder)
    for old in _steps(folder)[:-KEEP]:
        remove_tree(old)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint, or None where there is none.

    Raises
    ------
    CheckpointError
        When the newest does not match its hashes; the sentence says what to delete to go on from
        the one before.
    """
    steps = _steps(folder)
    return _load(steps[-1]) if steps else None


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _load(path: Path) -> Checkpoint:
    try:
        state = json.loads((path / "state.json").read_text())
        stored = state.pop("sha256")
        if stored != _digest(state):
            raise ValueError("state.json does not match its sha256")
        weights = path / "weights.safetensors"
        if file_sha256(weights) != state["weights-sha256"]:
            raise ValueError("weights.safetensors does not match its sha256")
        return Checkpoint(state["step"], load(weights.read_bytes()), state["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({error}): delete that folder to continue from "
            "the one before it, or set resume = false to start over"
        ) from error


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
