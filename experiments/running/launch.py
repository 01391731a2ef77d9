"""One cell of a table, on any engine, from refusal to outcome."""

import sys
import traceback
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from experiments.running.cells import read_summary
from experiments.running.signals import on_interrupt
from fedta_app.config import RunConfig
from fedta_app.device.cuda import has_bf16
from fedta_app.errors import ConfigError, RunError
from fedta_app.runs.checkpoint import load_checkpoint
from fedta_app.runs.directory import STOP_FILE, check_resumable, check_writable, run_path
from fedta_app.runs.session import INTERRUPTED
from fedta_app.training.workspace import Workspace, shared_workspace

FINISHED, FAILED, REFUSED, STOPPED, INTERRUPTED_RUN = 0, 1, 2, 3, 130  # exit statuses


def preflight(config: RunConfig, *, client_gpus: float | None = None, build: bool = True) -> None:
    """Refuse, before anything is started, what would fail later.

    Parameters
    ----------
    build : bool
        Load data and model to see that they fit; not needed again for a cell that shares them.

    Raises
    ------
    ValueError
        Of one sentence: results directory, checkpoint, data set, weights, partition.
    """
    if config.engine != "centralized" and not config.num_clients:
        raise ConfigError(
            "num-clients = 0 is not allowed here: it stands for the size of a federation that "
            "`flwr run` was given; set num-clients to the number of clients"
        )
    if config.engine == "flower" and client_gpus and not torch.cuda.is_available():
        raise ConfigError(
            f"--client-gpus {client_gpus:g} is not allowed here: torch finds no CUDA GPU on this "
            "machine; leave the option out, or use --client-gpus 0"
        )
    check_writable(config)
    check_resumable(config)
    if config.resume:
        load_checkpoint(run_path(config) / "checkpoint")
    if build:
        _warn(shared_workspace(config))


def _warn(workspace: Workspace) -> None:
    for warning in workspace.built.warnings:
        print(f"warning: {warning}", flush=True)
    if workspace.precision == "bf16" and not has_bf16(workspace.device):
        kind, better = ("GPU", "fp16") if workspace.device.type == "cuda" else ("CPU", "fp32")
        print(
            f"warning: this {kind} only emulates bf16, slowly; precision is auto or {better}",
            flush=True,
        )


def launch(
    config: RunConfig, *, client_cpus: int, client_gpus: float | None, forget_stop: bool = True
) -> int:
    """Run a configuration that passed `preflight` and return the exit status.

    With None, the share of a GPU that a client takes is measured.

    Ctrl-C asks the run to stop after its round, with a checkpoint; a second one ends it at once.
    """
    directory = run_path(config)
    before = read_summary(directory)
    if forget_stop:
        (directory / STOP_FILE).unlink(missing_ok=True)  # of an attempt that was killed
    with _stop_on_interrupt(directory / STOP_FILE):
        if config.engine == "flower":
            from experiments.running.concurrency import client_share
            from experiments.running.flower import run_on_flower

            shared_workspace.cache_clear()  # the run has processes of its own
            share = client_share(config, client_cpus=client_cpus, client_gpus=client_gpus)
            run_on_flower(config, client_cpus=client_cpus, client_gpus=share)
        elif config.engine == "in-process":
            run_here(config)
        else:
            from fedta_app.centralized import run_centralized

            run_centralized(config)
    return _outcome(directory, before)


def run_here(config: RunConfig) -> None:
    """Run a federation on the in-process engine, with no word on how it ended."""
    # Not above: a process that only starts Flower's engine would carry them.
    from client_app.app import app as client_app
    from engine.inprocess import run_in_process
    from server_app.app import app as server_app
    from strategies.nodes import num_nodes

    nodes = num_nodes(config.num_clients, config.clients_per_node)
    run_in_process(server_app, client_app, config.to_mapping(), nodes)


def attempt(config: RunConfig, **options: Any) -> int:
    """Launch, and make of whatever goes wrong an exit status: other cells shall have their turn."""
    try:
        return launch(config, **options)
    except Exception as error:
        if not isinstance(error, ValueError | RunError):
            traceback.print_exc()
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return FAILED


def _outcome(directory: Path, before: dict[str, Any]) -> int:
    summary = read_summary(directory)
    fresh = summary.get("sessions") != before.get("sessions")
    if fresh and summary.get("status") == "finished":
        return FINISHED
    if fresh and summary.get("status") == "stopped":
        return INTERRUPTED_RUN if summary["reason"] == INTERRUPTED else STOPPED
    reason = summary.get("reason") if fresh else "it ended before it began"
    print(f"failed: {reason or 'its process ended without a word'}; see {directory}", flush=True)
    return FAILED


def _stop_on_interrupt(stop_file: Path) -> AbstractContextManager[None]:
    def ask() -> None:
        stop_file.touch()
        print(" stopping after this round (Ctrl-C again to end at once)", flush=True)

    def end() -> None:
        raise KeyboardInterrupt

    return on_interrupt(ask, end)
