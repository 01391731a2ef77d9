"""A run as Python sees it: its configuration, records, mask and models, read from its directory."""

import json
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedta_app.config import RunConfig
from fedta_app.errors import CheckpointError, RunError, first_line
from fedta_app.files import expanded, read_toml
from fedta_app.models.blocks import split_blocks
from fedta_app.models.building import build_model
from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.checkpoint import load_checkpoint
from fedta_app.runs.finished_model import FOLDER, WEIGHTS, KeptModel, read_model
from fedta_app.runs.records import disagreement, is_summary
from fedta_app.vectors import FlatMask
from fedta_app.vectors.layout import Layout

if TYPE_CHECKING:
    import pandas as pd

_SEED = re.compile(r"seed\d+")


class Run:
    """A run in its directory; each file is read when it is first asked for.

    Every property raises RunError, in one sentence, when its file is missing or damaged.

    Parameters
    ----------
    path : Path
        The run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.status})"

    @cached_property
    def config(self) -> RunConfig:
        """The configuration, checked."""
        return RunConfig.from_mapping(read_toml(self.path / "config.toml"))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds."""
        path = self.path / "summary.json"
        try:
            summary: dict[str, Any] = json.loads(path.read_text())
            _ = summary["status"], summary["final"]
            if not is_summary(summary):
                raise ValueError("it is not what the run wrote")
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged ({error})") from error
        return summary

    @property
    def status(self) -> str:
        """How far the run is: finished, stopped, failed or running, which a killed run stays."""
        return str(self.summary["status"])

    @property
    def final(self) -> dict[str, Any]:
        """The figures of the last round, by column of metrics.csv; None where not measured."""
        return self.summary["final"] or {}

    @property
    def best(self) -> dict[str, Any]:
        """The figures of the earliest round with the highest validation accuracy."""
        return self.summary["best-by-validation"] or {}

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """The rows of metrics.csv, one for each round of each phase; NaN where not measured."""
        import pandas as pd  # a run that is only trained does not need it

        path = self.path / "metrics.csv"
        try:
            frame = pd.read_csv(path)
            _ = frame["round"].astype(int), frame["phase"]
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError) as error:
            raise RunError(f"{path} is damaged ({first_line(error)})") from error
        return frame

    @cached_property
    def flat_mask(self) -> FlatMask | None:
        """The mask of the weights that travelled, over the weights as they travel."""
        if not (noted := self.summary.get("mask")):
            return None
        if "sha256" in noted:
            bits = BlobStore(self.path / "blobs").get(noted["sha256"])
        elif checkpoint := load_checkpoint(self.path / "checkpoint"):  # the baseline keeps it there
            bits = checkpoint.state["parts"]["baseline"]["mask"].numpy().tobytes()
        else:
            raise RunError(f"{self.path} has no checkpoint any more, which held its mask")
        return FlatMask.from_bits(bits, noted["of"], torch.device("cpu"))

    @cached_property
    def mask(self) -> dict[str, Tensor] | None:
        """The mask by parameter, True where trained; None where all weights were.

        It is the mask of the weights that travelled: where each client has a mask of its own, it
        is their union. The head has no mask: it is made first and then frozen.
        """
        flat = self.flat_mask
        if flat is None:
            return None
        if "model" not in self.summary:
            raise RunError(
                f"{self.path / 'summary.json'} does not say how the model is built: it was "
                "written by an earlier release of fedta"
            )
        model, head = build(self.summary["model"])
        if trained := self.config.trained_blocks:  # the frozen blocks are in no mask
            facts = self.summary["model"]
            size = facts["image-size"]
            image = torch.zeros(1, len(facts["mean"]), size, size)
            _, model = split_blocks(facts["name"], model, trained, image)
        backbone = {n: p for n, p in model.named_parameters() if not n.startswith(f"{head}.")}
        return Layout.of(backbone).views(flat.mask)

    def kept(self, weights: str = "last") -> KeptModel:
        """Return the named weights that the run kept: "last", or "best" by validation.

        Raises
        ------
        RunError
            When the run is not finished, did not keep them, or the file is damaged.
        """
        if weights not in WEIGHTS:
            raise RunError(f"weights = {weights!r} is not allowed: weights is last or best")
        if self.status != "finished":
            raise _unfinished(self)
        path = self.path / FOLDER / f"{weights}.safetensors"
        if not path.is_file():
            raise RunError(
                f"{self.path} did not keep its {weights} weights: keep-model of the run decides "
                "that, and earlier releases of fedta kept none"
            )
        return read_model(path)

    def model(self, weights: str = "last") -> nn.Module:
        """Return the model with its "last" weights, or the "best" by validation.

        It is on the CPU and in evaluation mode. `fedta_app.data.to_input` makes its inputs of
        images; ``kept(weights).facts["model"]`` has the size, mean and std for that.

        Raises
        ------
        RunError
            As `kept`.
        """
        kept = self.kept(weights)
        model, _ = build(kept.facts["model"])
        model.load_state_dict(kept.tensors)
        return model.eval()


def build(facts: dict[str, Any]) -> tuple[nn.Module, str]:
    """Return the network that the facts of a model describe, and the name of its head."""
    built = build_model(
        facts["name"],
        weights="random",
        image_size=facts["image-size"],
        num_classes=facts["classes"],
        in_channels=facts["channels"],
        seed=0,
    )
    return built.model, built.head


def load_run(path: str | Path, *, unfinished: bool = False) -> Run:
    """Return the run in a directory.

    Parameters
    ----------
    path : str or Path
        The directory that the run printed, `<results-dir>/<name>/seed<seed>`.
    unfinished : bool
        Also return a run that was stopped, killed or failed, or is running.

    Raises
    ------
    RunError
        When the directory holds no run, one that is not finished, or a damaged one.
    ConfigError
        When its configuration cannot be read, or it is in somebody's home who has none.

    Examples
    --------
    >>> import tempfile
    >>> from fedta_app.centralized import run_centralized
    >>> from fedta_app.runs.directory import run_path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = RunConfig(engine="centralized", num_server_rounds=1, results_dir=folder)
    ...     run_centralized(config)  # doctest: +ELLIPSIS
    ...     run = load_run(run_path(config))
    ...     list(run.metrics["phase"]), run.model("last")(torch.zeros(2, 1, 8, 8)).shape
    run directory: ...
    (['start', 'train'], torch.Size([2, 10]))
    """
    folder = expanded(path, f"RUN = {str(path)!r}")
    if not (folder / "config.toml").is_file() or not (folder / "summary.json").is_file():
        raise RunError(_no_run(folder))
    run = Run(folder)
    _ = run.config, run.metrics
    if run.status != "finished":
        if not unfinished:
            raise _unfinished(run)
        return run
    with suppress(CheckpointError):  # nothing to compare with, and models are files of their own
        if odd := disagreement(folder):
            raise RunError(f"{odd}: the command that started the run writes it anew")
    return run


def _no_run(folder: Path) -> str:
    """Return the sentence for a directory that holds no run, with what may have been meant."""
    if not folder.is_dir():
        return f"{folder} is no run directory: there is no such folder"
    seeds = sorted(p.name for p in folder.iterdir() if _SEED.fullmatch(p.name) and p.is_dir())
    if seeds:
        return f"{folder} is no run directory, but holds some: name one of {', '.join(seeds)}"
    return f"{folder} is no run directory: it lacks config.toml or summary.json"


def _unfinished(run: Run) -> RunError:
    last = run.final
    where = f"{last['phase']} round {last['round']}" if last else "no round"
    return RunError(
        f"{run.path} is not finished ({run.status} after {where}): the command that started it "
        "continues it"
    )
