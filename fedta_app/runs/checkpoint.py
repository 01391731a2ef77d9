"""Checkpoints of a run: safetensors and JSON, with hashes, written atomically.

    checkpoint/step-000012/weights.safetensors  the tensors of the state
    checkpoint/step-000012/state.json           the rest of it, and the sha256 of both files

A state is a tree of dictionaries whose leaves are tensors and JSON values; in state.json, a tensor
is replaced by its name. The step is the number of rows in metrics.csv. The two newest checkpoints
are kept. No pickle is ever loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedta_app.errors import CheckpointError
from fedta_app.files import file_sha256, remove_tree, sync_folder, write_atomically

KEEP = 2
FORMAT = 2
_TENSOR = "tensor in weights.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to continue: nested dictionaries of tensors and JSON values."""

    step: int
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; a crash at any moment leaves the previous one intact."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{checkpoint.step:06d}"
    temporary = folder / f".step-{checkpoint.step:06d}.tmp"
    remove_tree(temporary)
    temporary.mkdir()
    tensors: dict[str, Tensor] = {}
    values = _without_tensors(checkpoint.state, "", tensors)
    weights = save(tensors)
    write_atomically(temporary / "weights.safetensors", weights)
    stored = {
        "format": FORMAT,
        "step": checkpoint.step,
        "weights-sha256": hashlib.sha256(weights).hexdigest(),
        "state": values,
    }
    stored["sha256"] = _digest(stored)
    write_atomically(temporary / "state.json", json.dumps(stored, indent=1))
    remove_tree(final)
    temporary.rename(final)
    sync_folder(folder)
    for old in _steps(folder)[:-KEEP]:
        remove_tree(old)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint, or return None where there is none.

    Raises
    ------
    CheckpointError
        When the newest does not match its hashes (the message says what to delete to continue from
        the one before), or was written by another release.
    """
    steps = _steps(folder)
    return _load(steps[-1]) if steps else None


def check_format(folder: Path) -> None:
    """Refuse a checkpoint that another release wrote; the weights are not read for it.

    Raises
    ------
    CheckpointError
        Naming the release that reads it.
    """
    for path in _steps(folder)[-1:]:
        try:
            number = _read_values(path).get("format", 1)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # damaged: `load_checkpoint` says how
        if number != FORMAT:
            raise _another_format(path, number)


def kept_values(folder: Path) -> list[dict[str, Any]]:
    """Return the states of all undamaged checkpoints, without their tensors."""
    found = []
    for path in _steps(folder):
        try:
            found.append(_read_values(path)["state"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _read_values(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((path / "state.json").read_text())
    sha256 = stored.pop("sha256")
    if sha256 != _digest(stored):
        raise ValueError("state.json does not match its sha256")
    return stored


def _load(path: Path) -> Checkpoint:
    try:
        stored = _read_values(path)
        if stored.get("format", 1) != FORMAT:
            raise _another_format(path, stored.get("format", 1))
        weights = path / "weights.safetensors"
        if file_sha256(weights) != stored["weights-sha256"]:
            raise ValueError("weights.safetensors does not match its sha256")
        tensors = load(weights.read_bytes())
        state = _with_tensors(stored["state"], tensors)
        if tensors:
            raise ValueError(f"the state does not refer to the tensor {min(tensors)}")
        return Checkpoint(stored["step"], state)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged ({error}): delete that folder to continue from "
            "the one before it, or set resume = false to start over"
        ) from error


def _another_format(path: Path, number: int) -> CheckpointError:
    release = "fedta 0.1.0" if number < FORMAT else "a later release of fedta"
    return CheckpointError(
        f"the checkpoint {path} was written by {release}, which reads it: continue the run with "
        "that release, choose another name, or set resume = false to start over"
    )


def _without_tensors(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Return the value with names in place of its tensors, which are put into `tensors`."""
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous()
        return {_TENSOR: place}
    if isinstance(value, Mapping):
        return {
            key: _without_tensors(entry, f"{place}/{key}" if place else str(key), tensors)
            for key, entry in value.items()
        }
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the value with tensors in place of their names; these are removed from `tensors`."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {_TENSOR}:
        return tensors.pop(value[_TENSOR])
    return {key: _with_tensors(entry, tensors) for key, entry in value.items()}


def _digest(stored: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()
