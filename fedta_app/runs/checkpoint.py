"""Checkpoints of a run: safetensors and JSON, with hashes, written atomically.

    checkpoint/step-000012/weights.safetensors  the tensors of the state
    checkpoint/step-000012/state.json           the rest of it, and the sha256 of both files

A state is a tree of dictionaries whose leaves are tensors and JSON values; in state.json, a tensor
is replaced by its name. The step is the number of rows in metrics.csv. The two newest checkpoints
are kept: where the newest is damaged, a run goes on from the one before it. No pickle is ever
loaded.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fedta_app.errors import NO_RESUME, CheckpointError
from fedta_app.files import remove_tree, sync_folder, write_atomically
from fedta_app.hashed_files import json_sha256, read_hashed, write_hashed
from fedta_app.vectors.tensor_bytes import tensor_parts, tensors_in

KEEP = 2
FORMAT = 2
_TENSOR = "tensor in weights.safetensors"
_STEP = re.compile(r"step-(\d{6,})")
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)


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
    try:
        _write(temporary, checkpoint)
        remove_tree(final)
        temporary.rename(final)
    except BaseException:
        remove_tree(temporary)  # it may be what fills the disk
        raise
    sync_folder(folder)
    for old in _steps(folder)[:-KEEP]:
        remove_tree(old)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    tensors: dict[str, Tensor] = {}
    values = _without_tensors(checkpoint.state, "", tensors)
    weights = write_hashed(folder / "weights.safetensors", tensor_parts(tensors))
    stored = {
        "format": FORMAT,
        "step": checkpoint.step,
        "weights-sha256": weights,
        "state": values,
    }
    stored["sha256"] = json_sha256(stored)
    write_atomically(folder / "state.json", json.dumps(stored, indent=1))


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint, or return None where there is none.

    Raises
    ------
    CheckpointError
        When the newest is damaged, or was written by another release.
    """
    steps = _steps(folder)
    return _load(steps[-1]) if steps else None


def newest_whole(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint that is not damaged, or return None where there is none at all.

    Raises
    ------
    CheckpointError
        When all are damaged, or the newest was written by another release.
    """
    check_format(folder)
    first: CheckpointError | None = None
    for path in reversed(_steps(folder)):
        try:
            return _load(path)
        except CheckpointError as error:
            first = first or error
    if first is None:
        return None
    raise first


def set_aside_after(folder: Path, step: int) -> list[Path]:
    """Rename the checkpoints of later steps, which are damaged, and return where they are now."""
    moved = []
    for path in _steps(folder):
        if _number(path) > step:
            aside = path.with_name(f"damaged-{path.name}")
            remove_tree(aside)
            moved.append(path.rename(aside))
    return moved


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
        except _DAMAGE:
            return  # damaged: loading it says how
        if number != FORMAT:
            raise _another_format(path, number)


def newest_values(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint without its tensors, None where there is none.

    One that another release wrote counts as none: what it holds is that release's business.

    Raises
    ------
    CheckpointError
        When it is damaged.
    """
    for path in _steps(folder)[-1:]:
        try:
            stored = _read_values(path)
            return _state(stored) if stored.get("format", 1) == FORMAT else None
        except _DAMAGE as error:
            raise _damaged(path, error) from error
    return None


def kept_values(folder: Path) -> list[dict[str, Any]]:
    """Return the states of all undamaged checkpoints, without their tensors."""
    found = []
    for path in _steps(folder):
        try:
            found.append(_state(_read_values(path)))
        except _DAMAGE:
            continue
    return found


def _steps(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest last.

    Raises
    ------
    CheckpointError
        When the folder cannot be read: a run that took it for empty would start over.
    """
    try:
        found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"the checkpoints in {folder} cannot be read: {error.strerror}"
        ) from error
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read_values(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((path / "state.json").read_text())
    sha256 = stored.pop("sha256")
    if sha256 != json_sha256(stored):
        raise ValueError("state.json does not match its sha256")
    return stored


def _state(stored: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(state := stored["state"], dict):
        raise TypeError("its state is no mapping")
    return state


def _load(path: Path) -> Checkpoint:
    try:
        stored = _read_values(path)
        if stored.get("format", 1) != FORMAT:
            raise _another_format(path, stored.get("format", 1))
        if stored["step"] != _number(path):
            raise ValueError(f"it is of step {stored['step']}")
        weights, sha256 = read_hashed(path / "weights.safetensors")
        if sha256 != stored["weights-sha256"]:
            raise ValueError("weights.safetensors does not match its sha256")
        tensors = tensors_in(weights)
        state = _with_tensors(_state(stored), tensors)
        if tensors:
            raise ValueError(f"the state does not refer to the tensor {min(tensors)}")
        return Checkpoint(stored["step"], state)
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    why = str(error).partition("\n")[0]
    return CheckpointError(
        f"the checkpoint {path} is damaged ({why}): delete that folder to continue from "
        f"the one before it, or start the run over ({NO_RESUME})"
    )


def _another_format(path: Path, number: Any) -> CheckpointError:
    earlier = isinstance(number, int) and number < FORMAT
    release = "fedta 0.1.0" if earlier else "a later release of fedta"
    return CheckpointError(
        f"the checkpoint {path} was written by {release}, which reads it: continue the run with "
        f"that release, choose another name, or start the run over ({NO_RESUME})"
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
