"""The model that a run keeps: named weights in safetensors, and what they are.

    model/last.safetensors   the weights after the last round
    model/best.safetensors   those of the earliest round with the highest validation accuracy

The names are those of the model's state dict, head included; for a timm model they are timm's. The
metadata of a file has one entry, `fedta`: JSON that says how the model is built and fed with
images, what it was trained on and how, and what was measured. It is one entry because safetensors
writes several in an order that changes, and equal models are to be equal files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fedta_app.config import RunConfig, without_folders
from fedta_app.errors import RunError
from fedta_app.files import write_atomically
from fedta_app.hashed_files import json_sha256
from fedta_app.models.weights_files import state_sha256
from fedta_app.runs.metrics import Row, best_row
from fedta_app.runs.provenance import versions
from fedta_app.runs.session import RunSession

FOLDER = "model"
WEIGHTS = ("last", "best")
FORMAT = 1
_ENTRY = "fedta"
_MEASURED = ("train_loss", "val_", "test_")  # beginnings of the columns that describe the model


@dataclass(frozen=True, eq=False)
class KeptModel:
    """A model as a run kept it.

    Attributes
    ----------
    tensors : dict of str to Tensor
        The state dict, on the CPU.
    facts : dict
        What the file says of it.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_model(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a state dict with its facts, atomically."""
    # Copies, because parameters that share one vector cannot be saved by themselves.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    stored = {"format": FORMAT, **facts, "weights-sha256": state_sha256(tensors)}
    stored["sha256"] = json_sha256(stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, metadata={_ENTRY: json.dumps(stored, sort_keys=True)}))


def read_facts(path: Path) -> dict[str, Any]:
    """Return what a file says of its model; the weights are not read.

    Raises
    ------
    RunError
        When it is damaged, not a model that a run kept, or of a later release.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
        sha256 = facts.pop("sha256", None)  # earlier releases did not write it
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, AttributeError, SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error})") from error
    if sha256 not in (None, json_sha256(facts)):
        raise RunError(f"{path} is damaged: what it says of its model does not match its sha256")
    if facts.get("format") != FORMAT:
        raise RunError(f"{path} is not a model that this release of fedta kept")
    return facts


def read_model(path: Path) -> KeptModel:
    """Return the model in a file, checked against its sha256.

    Raises
    ------
    RunError
        As `read_facts`, or when the weights do not match their sha256.
    """
    facts = read_facts(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if state_sha256(tensors) != facts["weights-sha256"]:
        raise RunError(f"{path} is damaged: its weights do not match their sha256")
    return KeptModel(tensors, facts)


class ModelKeeper:
    """Keeps the model of a run in its directory, as the key `keep-model` says.

    Parameters
    ----------
    session : RunSession
    model : callable
        Returns the model with the current weights.
    facts : mapping
        What `fedta_app.training.facts.model_facts` returns.
    """

    def __init__(
        self, session: RunSession, model: Callable[[], nn.Module], facts: Mapping[str, Any]
    ) -> None:
        self._session = session
        self._model = model
        self._facts = facts
        self._folder = session.directory.path / FOLDER
        self._choice = session.config.keep_model

    def after_round(self, rows: Sequence[Row]) -> None:
        """Keep the model if the last of the rows is the best by validation.

        This comes before the round is in a checkpoint: a run that is killed in between measures
        the round again and writes the same file; the other way round, it would never write it.
        """
        if self._choice == "best-and-last" and best_row(list(rows)) is rows[-1]:
            self._write("best", rows[-1])

    def at_end(self, rows: Sequence[Row]) -> None:
        """Keep the model after the last round."""
        if self._choice != "none":
            self._write("last", rows[-1])
        self._check_best(best_row(list(rows)))

    def _check_best(self, best: Row | None) -> None:
        """Remove a best model that is of another round than the records say.

        It can be of another where rounds were repeated with other bits, as on another processor,
        or where `keep-model` changed during the run.
        """
        path = self._folder / "best.safetensors"
        if self._choice != "best-and-last" or best is None:
            return
        why = "the run was continued with other bits, or with another keep-model"
        if path.exists():
            try:
                facts = read_facts(path)
                if (facts["phase"], facts["round"], facts["figures"]) == _place(best):
                    return
            except RunError as error:
                why = str(error)
            path.unlink()
        place = f"{best.phase} {best.round}"
        print(f"warning: the weights of the best round ({place}) were not kept: {why}", flush=True)

    def _write(self, weights: str, row: Row) -> None:
        phase, number, figures = _place(row)
        config = self._session.config
        described = describing_keys(config)
        facts = {
            **self._facts,
            "run": config.name,
            "seed": config.seed,
            "weights": weights,
            "phase": phase,
            "round": number,
            "figures": figures,
            "config": described,
            "config-sha256": json_sha256(described),
            "code": self._session.code,
            "versions": versions(),
        }
        with torch.no_grad():
            write_model(self._folder / f"{weights}.safetensors", self._model().state_dict(), facts)


def _place(row: Row) -> tuple[str, int, dict[str, float]]:
    """Return the phase and the round of a row, and what was measured of the model then."""
    figures = {
        name: value
        for name, value in asdict(row).items()
        if name.startswith(_MEASURED) and value is not None
    }
    return row.phase, row.round, figures


def describing_keys(config: RunConfig) -> dict[str, Any]:
    """Return the keys that something reads and that decide a result, without paths."""
    keys = config.values_that_decide("result", "rounding")
    return without_folders(keys) | {"engine": config.engine}
