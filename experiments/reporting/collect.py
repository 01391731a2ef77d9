"""From run directories to records: `python -m experiments collect TABLE`.

A run directory holds weights, paths and event files; a record what a table needs of it, and what
can only be checked while the weights are there.
"""

import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from experiments.reporting.records import (
    CELLS,
    CLASSES_FILE,
    FILES,
    MASK_FILE,
    MATRICES,
    POINTS,
    RecordError,
    record_sha256,
)
from experiments.running.cells import Cell, other_weights
from fedta_app.analysis import block_density, mask_overlap_matrix
from fedta_app.analysis.interference import Interference
from fedta_app.config import RunConfig, keys_that_decide, without_folders
from fedta_app.data.loading import DataSplits
from fedta_app.errors import first_line
from fedta_app.files import file_sha256, read_toml, write_atomically
from fedta_app.finished.reading import Run
from fedta_app.partition.schemes import class_counts
from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.checkpoint import Checkpoint, load_checkpoint
from fedta_app.runs.metrics import Row, csv_text
from fedta_app.runs.records import (
    METRICS,
    SUMMARY,
    checked,
    disagreement,
    figures,
    read_summary,
    stored_rows,
    write_summary,
)
from fedta_app.seeding import numpy_generator
from fedta_app.training.datasets import data_key, knows_clients
from fedta_app.training.workspace import Workspace, build_workspace
from fedta_app.vectors import FlatMask, weights_sha256

MASK_SAMPLE = 2**16  # weights whose bits are kept: 8 KiB, and overlaps to half a percent point
_MOST_OWN_MASKS = 20  # clients whose masks are compared
_PLACE_OPTIONS = (
    "--results-dir", "--data-dir", "--jobs", "--max-minutes", "--client-cpus", "--client-gpus"
)  # fmt: skip
_PATH = re.compile(r"(?<![\w.])[~.]{0,2}/[^\s'\"]*/")


def record_folder(cell: Cell, results: Path) -> Path:
    """Return where the record of a cell is kept."""
    return results / cell.preset.table / CELLS / cell.preset.name / f"seed{cell.config.seed}"


class LastData:
    """The data of the cell before, which are read again only where the next cell's differ."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._data: DataSplits | None = None

    def workspace(self, config: RunConfig) -> Workspace:
        """Return the workspace of a configuration."""
        key = data_key(config)
        built = build_workspace(config, self._data if key == self._key else None)
        self._key, self._data = key, built.data
        return built


def collect(cell: Cell, path: Path, results: Path, *, with_classes: bool, last: LastData) -> Path:
    """Write the record of a cell from its finished run, and return the record's folder.

    Parameters
    ----------
    path : Path
        The run directory.
    results : Path
        Where the tables' records are.
    with_classes : bool
        Keep which client holds how many images of which class.
    last : LastData
        The same one for all cells of a table.

    Raises
    ------
    RecordError
        When the checkpoint is gone, or the weights that the run started from are, or are not those
        that the cell asks for.
    CheckpointError
        When the checkpoint is damaged.
    """
    folder = record_folder(cell, results)
    # Where data and weights are is what this command says: the run may be of another machine.
    config = RunConfig.from_mapping(read_toml(path / "config.toml")).with_values(
        weights=cell.config.weights, data_dir=cell.config.data_dir, cache_dir=cell.config.cache_dir
    )
    checkpoint = load_checkpoint(path / "checkpoint")
    if checkpoint is None:
        raise RecordError(f"{path} has no checkpoint any more, which the record is checked against")
    summary, rows = _as_the_checkpoint_says(path, checkpoint)
    _check_points(path, summary)
    workspace = last.workspace(config.with_values(device="cpu"))
    if workspace.weights.fingerprint != summary["identity"]["parameters-sha256"]:
        raise RecordError(f"{path} was run with other weights than {config.weights!r} are now")
    if said := other_weights(cell.config, summary):
        raise RecordError(f"{path} {said}")
    files: dict[str, str | bytes] = {}  # all of them, before an earlier record is replaced
    if (mask := Run(path).flat_mask) is not None:
        files[MASK_FILE], summary["mask-sample"] = _mask_sample(mask)
        summary["mask-density"] = _densities(mask, workspace)
        frozen = ~mask.mask
        before, after = workspace.weights.vector, _server(checkpoint)["weights"]
        summary["frozen-weights-untouched"] = torch.equal(
            before.view(torch.int32)[frozen], after.view(torch.int32)[frozen]
        )
        if (overlap := _own_masks(path, checkpoint)) is not None:
            summary["own-masks"] = overlap
    if vectors := {**_task_vectors(path), **summary.get("task-vectors", {})}:
        summary["task-vectors"] = vectors
    files |= _points(path, checkpoint)
    if with_classes and knows_clients(config):
        labels, classes = workspace.data.train.labels.numpy(), workspace.data.num_classes
        counts = class_counts(labels, workspace.partitions, classes).tolist()
        files[CLASSES_FILE] = "".join(",".join(map(str, row)) + "\n" for row in counts)
    summary["name"] = cell.preset.label
    for session in summary["sessions"]:
        if command := session.get("command"):
            session["command"] = portable_command(command)
    files[METRICS] = csv_text(rows)
    files["config.toml"] = _portable(config, cell.preset.label)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if name in files:
            write_atomically(folder / name, files[name])
        else:  # an earlier record's
            (folder / name).unlink(missing_ok=True)
    summary["files"] = {name: record_sha256(folder / name) for name in FILES if name in files}
    if (start := Path(summary["weights"]["from"])).is_absolute():  # not the name of a repository
        summary["weights"]["from"] = start.name
    write_summary(folder, without_paths(summary))
    return folder


def _as_the_checkpoint_says(path: Path, checkpoint: Checkpoint) -> tuple[dict[str, Any], list[Row]]:
    """Return the summary and the rows of a run; the checkpoint decides, since it has a hash."""
    summary, rows = read_summary(path), stored_rows(checkpoint.state, checkpoint.step)
    said = disagreement(path, checkpoint.state)
    sha256 = _final_sha256(path, checkpoint)
    if not said and summary.get("final-weights-sha256") != sha256:
        said = f"{path / SUMMARY} does not name the weights of the checkpoint"
    if said:
        print(f"note: {said}: what the checkpoint holds is kept in its place", flush=True)
        held = {"initial-weights-sha256": checkpoint.state.get("initial-weights-sha256")}
        held["identity"] = checkpoint.state.get("identity")
        summary |= {**figures(rows), **held, "final-weights-sha256": sha256}
    return summary, rows


def _final_sha256(path: Path, checkpoint: Checkpoint) -> str:
    """Return the sha256 of all weights in a checkpoint, as the run computes it."""
    kept = _server(checkpoint)
    head = kept["head"]
    if isinstance(head, str):  # of a federation: the name of a blob
        data = BlobStore(path / "blobs").get(head) if head else b""
        head = torch.frombuffer(bytearray(data), dtype=torch.float32) if data else None
    return weights_sha256(torch.cat([part for part in (kept["weights"], head) if part is not None]))


def _points(path: Path, checkpoint: Checkpoint) -> dict[str, str | bytes]:
    """Return the tables of points by file; the rows of interference.csv are in the checkpoint."""
    files: dict[str, str | bytes] = {
        f"{name}.csv": (path / f"{name}.csv").read_bytes()
        for name in POINTS
        if (path / f"{name}.csv").exists()
    }
    train = checkpoint.state["parts"].get("phase/train", {})
    if rows := [checked(Interference, row) for row in train.get("interference", [])]:
        columns = [entry.name for entry in fields(Interference)]
        files["interference.csv"] = csv_text(rows, columns)
    return files


def _check_points(path: Path, summary: dict[str, Any]) -> None:
    """Refuse a table of points that is not the one that the run wrote."""
    for name, sha256 in summary.pop("outputs", {}).items():
        try:
            same = file_sha256(path / name) == sha256
        except OSError:
            same = False
        if not same:
            raise RecordError(
                f"{path / name} is missing, or not what the run wrote: nothing else holds it, so "
                "start the run over with --no-resume, or leave it out"
            )


def _portable(config: RunConfig, name: str) -> str:
    """Return the keys that decide what is computed, as TOML, without paths."""
    kept = {
        key: value
        for key, value in config.to_mapping().items()
        if key == "engine" or key not in keys_that_decide("place")
    }
    return tomli_w.dumps(without_paths(without_folders(kept)) | {"name": name})


def portable_command(command: str) -> str:
    """Return a command of `run` without what only says where it works, or for how long."""
    words, kept = shlex.split(command), list[str]()
    place = keys_that_decide("place")
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name == "--set":
            value = value if equals else words.pop(0)
            key, _, text = (part.strip() for part in value.partition("="))
            if key not in place:
                kept += ["--set", f"{key}={without_folders({key: text})[key]}"]
        elif name in _PLACE_OPTIONS:
            if not equals:
                words.pop(0)
        elif word not in ("--resume", "--no-resume", "--skip-kept"):
            kept.append(word)
    return shlex.join(kept)


def without_paths(value: Any) -> Any:
    """Return the value with every path in its strings cut down to the file's name."""
    if isinstance(value, dict):
        return {
            key: entry if key == "name" else without_paths(entry) for key, entry in value.items()
        }
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    return _PATH.sub("", value) if isinstance(value, str) else value


def _mask_sample(mask: FlatMask) -> tuple[bytes, dict[str, int]]:
    """Return a sample of the mask's bits, at positions that depend on its length only."""
    values = mask.mask.numpy()
    if len(values) > MASK_SAMPLE:
        order = numpy_generator("mask sample", len(values)).permutation(len(values))
        values = values[np.sort(order[:MASK_SAMPLE])]
    return np.packbits(values).tobytes(), {"entries": len(values), "of": mask.mask.numel()}


def _densities(mask: FlatMask, workspace: Workspace) -> dict[str, dict[str, float]]:
    """Return the trained share of every block and kind of layer."""
    shares = block_density(workspace.weights.views(mask.mask))
    return {
        block: {kind: round(share, 6) for kind, share in row.items()}
        for block, row in shares.items()
    }


def _server(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the server, or the baseline, kept."""
    parts: dict[str, dict[str, Any]] = checkpoint.state["parts"]
    return parts.get("server") or parts["baseline"]


def _own_masks(path: Path, checkpoint: Checkpoint) -> dict[str, float] | None:
    """Return how much the clients' own masks overlap, where they have some."""
    digests = [digest for _, digest in sorted(_server(checkpoint).get("own-masks", {}).items())]
    if len(digests) < 2:
        return None
    store, size = BlobStore(path / "blobs"), _server(checkpoint)["weights"].numel()
    masks = [
        FlatMask.from_bits(store.get(digest), size, torch.device("cpu")).mask
        for digest in digests[:_MOST_OWN_MASKS]
    ]
    overlap = mask_overlap_matrix(masks)
    pairs = overlap.jaccard[~torch.eye(len(masks), dtype=torch.bool)]
    return {"jaccard": round(float(pairs.mean()), 6), "chance": round(float(overlap.chance), 6)}


def _task_vectors(path: Path) -> dict[str, float]:
    """Return means over pairs of the last round's clients, where the run saved them."""
    means = {}
    for name in MATRICES:
        file = path / f"{name.replace('-', '_')}.csv"
        if file.exists():
            try:
                means[name] = round(float(np.nanmean(np.genfromtxt(file, delimiter=","))), 6)
            except (OSError, ValueError) as error:
                raise RecordError(f"{file} is damaged ({first_line(error)})") from error
    return means
