"""One run on any engine: the checks before it starts, and its exit status."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from experiments.exit_status import ExitStatus
from experiments.running.signals import on_interrupt
from fedta_app.config import RunConfig
from fedta_app.device.cpus import usable_cpus
from fedta_app.device.cuda import has_bf16
from fedta_app.device.exhausted import exhausted
from fedta_app.errors import ConfigError, RunError, disk_sentence
from fedta_app.progress import phase
from fedta_app.runs.checkpoint import newest_whole
from fedta_app.runs.command import to_continue
from fedta_app.runs.directory import (
    PROCESS_DIED,
    STOP_FILE,
    InUseError,
    check_resumable,
    check_writable,
    run_path,
    started_once,
)
from fedta_app.runs.loggers import check_logger
from fedta_app.runs.records import read_summary
from fedta_app.runs.session import INTERRUPTED
from fedta_app.training.workspace import Workspace, shared_workspace


def preflight(
    config: RunConfig,
    *,
    client_cpus: int = 1,
    client_gpus: float | None = None,
    build: bool = True,
) -> None:
    """Check a configuration before anything is started.

    Parameters
    ----------
    client_cpus, client_gpus
        As for `launch`.
    build : bool
        Load data and model to check that they fit; not needed again for a cell that shares them.

    Raises
    ------
    ValueError
        When results directory, logger, checkpoint, data set, weights or partition cannot be used.
    """
    check_clients(config)
    if config.engine == "flower":
        _check_resources(client_cpus, client_gpus)
    check_logger(config)
    check_writable(config)
    check_resumable(config)
    if config.resume:
        newest_whole(run_path(config) / "checkpoint")
    if build:
        with phase("loading data and model", sys.stderr):
            workspace = shared_workspace(config, None)
        _warn(workspace)


def _check_resources(client_cpus: int, client_gpus: float | None) -> None:
    """Refuse a share of the machine that is more than all of it; Ray would wait for it for ever."""
    cpus, gpus = usable_cpus(), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if client_cpus > cpus:
        raise ConfigError(
            f"--client-cpus {client_cpus} is not allowed here: it is a whole number from 1 to "
            f"{cpus}, the CPUs that this process may use"
        )
    if client_gpus and client_gpus > gpus:
        found = f"{gpus} CUDA GPU{'s' * (gpus > 1)}" if gpus else "no CUDA GPU"
        most = f" of at most {gpus}" if gpus else " of 0"
        raise ConfigError(
            f"--client-gpus {client_gpus:g} is not allowed here: torch finds {found} on this "
            f"machine; leave the option out, or give a share{most}"
        )


def check_clients(config: RunConfig) -> None:
    """Raise ConfigError where the number of clients is left to a federation that there is not."""
    if config.engine != "centralized" and not config.num_clients:
        raise ConfigError(
            "num-clients = 0 is not allowed here: it stands for the size of a federation that "
            "`flwr run` was given; set num-clients to the number of clients"
        )


def _warn(workspace: Workspace) -> None:
    if workspace.data.note:
        print(workspace.data.note, flush=True)
    if workspace.precision == "bf16" and not has_bf16(workspace.device):
        kind, better = ("GPU", "fp16") if workspace.device.type == "cuda" else ("CPU", "fp32")
        print(
            f"warning: this {kind} only emulates bf16, slowly; precision is auto or {better}",
            flush=True,
        )


def launch(
    config: RunConfig,
    *,
    client_cpus: int,
    client_gpus: float | None,
    forget_stop: bool = True,
    interrupted: threading.Event | None = None,
) -> ExitStatus:
    """Run a configuration that passed `preflight` and return how it ended.

    Ctrl-C asks the run to stop after its round, with a checkpoint; a second one ends it at once.
    Before the run has opened its records, the first one does.

    Parameters
    ----------
    client_cpus, client_gpus
        The CPUs and the share of a GPU for each client on Flower's engine; a share of None is
        measured.
    forget_stop : bool
        Remove a request to stop that an earlier session left in the run directory.
    interrupted : threading.Event, optional
        Is set at the first Ctrl-C. A run that was in its last round is finished all the same, and
        what would follow it must not start.

    Raises
    ------
    InUseError
        When another command runs it.
    """
    directory = run_path(config)
    with started_once(directory):
        before = read_summary(directory)
        if forget_stop:
            (directory / STOP_FILE).unlink(missing_ok=True)
        asked = interrupted or threading.Event()
        with _stop_on_interrupt(directory, before, asked):
            ended = _run_on_engine(config, before, client_cpus=client_cpus, client_gpus=client_gpus)
        return ended or _status(directory, before)


def _run_on_engine(
    config: RunConfig, before: dict[str, Any], *, client_cpus: int, client_gpus: float | None
) -> ExitStatus | None:
    """Run, and return how it ended where summary.json does not say that."""
    if config.engine == "flower":
        from experiments.running.concurrency import client_share
        from experiments.running.flower import run_on_flower

        shared_workspace.cache_clear()  # not needed: the run has its own processes
        share = client_share(config, client_cpus=client_cpus, client_gpus=client_gpus)

        def run(config: RunConfig) -> None:
            run_on_flower(config, client_cpus=client_cpus, client_gpus=share)

        return _until_it_ends(config, before, run)
    elif config.engine == "in-process":
        run_here(config)
    else:
        from fedta_app.centralized import run_centralized

        run_centralized(config)
    return None


def _until_it_ends(
    config: RunConfig, before: dict[str, Any], run: Callable[[RunConfig], None]
) -> ExitStatus | None:
    """Run on Flower's engine, and again where that broke off: it goes on from its checkpoint.

    A client's process may die, or the whole simulation (where memory is short, or the machine slept
    for a minute and Flower takes that for its end). It is not started again where it began twice
    at the same checkpoint, or did not come as far as to open its records.
    """
    directory, began = run_path(config), time.monotonic()
    sessions, first_rows = before.get("sessions"), list[int]()
    current = config
    while True:
        run(current)
        summary = read_summary(directory)
        if not summary or summary.get("sessions") == sessions:
            return None
        sessions = summary["sessions"]
        first_rows.append(sessions[-1]["rows"][0])
        broken_off = PROCESS_DIED in str(summary.get("reason")) or summary["status"] == "running"
        if not broken_off or first_rows[-2:] == [first_rows[-1]] * 2:
            return None
        left = config.max_minutes - (time.monotonic() - began) / 60
        if config.max_minutes and left <= 0:
            print(f"max-minutes = {config.max_minutes:g} is used up; {to_continue()}", flush=True)
            return ExitStatus.STOPPED
        print("the simulation broke off: it is started again from the last checkpoint", flush=True)
        current = config.with_values(resume=True, max_minutes=max(0.0, left))


def run_here(config: RunConfig) -> None:
    """Run a federation on the in-process engine; its summary.json says how it ended."""
    # Imported here, because a process that only starts Flower's engine does not need them.
    from client_app.app import app as client_app
    from engine.inprocess import run_in_process
    from server_app.app import app as server_app
    from strategies.nodes import num_nodes

    nodes = num_nodes(config.num_clients, config.clients_per_node)
    run_in_process(server_app, client_app, config.to_mapping(), nodes)


def attempt(config: RunConfig, **options: Any) -> ExitStatus:
    """Launch a run, and return FAILED for any error, so that the cells after it still run.

    STOPPED where another command runs it.
    """
    try:
        return launch(config, **options)
    except InUseError as error:
        print(error, flush=True)
        return ExitStatus.STOPPED
    except Exception as error:
        machines = exhausted(error)
        if not machines and not isinstance(error, ValueError | RunError | OSError):
            traceback.print_exc()
        reason = machines or (disk_sentence(error) if isinstance(error, OSError) else error)
        print(f"failed: {reason}", file=sys.stderr, flush=True)
        return ExitStatus.FAILED


def has_begun(directory: Path, before: dict[str, Any]) -> bool:
    """Return whether a run has opened its records, given summary.json from before it."""
    return read_summary(directory).get("sessions") != before.get("sessions")


def _status(directory: Path, before: dict[str, Any]) -> ExitStatus:
    """Return how a run ended, from summary.json now and before the run."""
    summary = read_summary(directory)
    if has_begun(directory, before):
        if summary.get("status") == "finished":
            return ExitStatus.FINISHED
        if summary.get("status") == "stopped":
            interrupted = summary.get("reason") == INTERRUPTED
            return ExitStatus.INTERRUPTED if interrupted else ExitStatus.STOPPED
    print(f"failed: {why_failed(directory, before)}; see {directory}", flush=True)
    return ExitStatus.FAILED


def why_failed(directory: Path, before: dict[str, Any]) -> str:
    """Return why a run failed, from summary.json now and before the run."""
    if not has_begun(directory, before):
        return "the run did not start"
    reason = read_summary(directory).get("reason")
    return reason or "its process ended without giving a reason (was it killed? out of memory?)"


def _stop_on_interrupt(
    directory: Path, before: dict[str, Any], asked: threading.Event
) -> AbstractContextManager[None]:
    def ask() -> None:
        asked.set()
        if not has_begun(directory, before):
            end()  # there is no round to wait for
        (directory / STOP_FILE).touch()
        print(" stopping after this round (Ctrl-C again to end at once)", flush=True)

    def end() -> None:
        # The next start may be another command, which would take it for a request of its own.
        (directory / STOP_FILE).unlink(missing_ok=True)
        raise KeyboardInterrupt

    return on_interrupt(ask, end)
