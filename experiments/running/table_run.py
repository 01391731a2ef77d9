"""Running the cells of a table: finished cells are skipped, failed ones do not stop the rest."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.exit_status import ExitStatus
from experiments.running.cells import Cell, FinishedRuns, State, other_weights, progress
from experiments.running.launch import attempt, preflight, why_failed
from experiments.running.workers import Workers, check_jobs
from fedta_app.config import RunConfig
from fedta_app.errors import CheckpointError, ConfigError
from fedta_app.runs.command import to_continue
from fedta_app.runs.directory import start_over
from fedta_app.runs.records import disagreement, read_summary

BEFORE, ELSEWHERE = "finished before", "running in another process"


@dataclass
class Outcome:
    """The outcome of a cell.

    Attributes
    ----------
    path : Path
        The directory of its run, which may belong to another table that shares the cell.
    status : ExitStatus or None
        None if Ctrl-C came before the cell was run.
    word : str
        How the printed summary describes the outcome.
    damaged : bool
        It is finished, and run all the same, to write its records anew.
    """

    cell: Cell
    path: Path
    status: ExitStatus | None = None
    word: str = "waiting"
    damaged: bool = False


class TimeBudget:
    """The time limit that the cells of one command share.

    Parameters
    ----------
    max_minutes : float
        Counted from now; 0 for no limit.
    """

    def __init__(self, max_minutes: float) -> None:
        self._minutes = max_minutes
        self._began = time.monotonic()
        self._first = True

    def limited(self, config: RunConfig) -> RunConfig | None:
        """Return the configuration with the time that is left, or None if there is none.

        The first cell is always run, so that a command makes progress however short its limit.
        """
        if not self._minutes:
            return config
        left = self._minutes - (time.monotonic() - self._began) / 60
        if left <= 0 and not self._first:
            return None
        self._first = False
        own = config.max_minutes or left
        return config.with_values(max_minutes=max(min(left, own), 1e-9))


def run_cells(
    cells: Sequence[Cell],
    *,
    client_cpus: int,
    client_gpus: float | None,
    jobs: int,
    max_minutes: float = 0.0,
) -> list[Outcome]:
    """Run the unfinished cells in order, and return the outcome of all.

    At Ctrl-C, running cells stop after their round, and no more are started; a second Ctrl-C ends
    them at once.

    Parameters
    ----------
    jobs : int
        Number of cells that run at a time, each in its own process.
    max_minutes : float
        Time limit for all cells together, kept by a clean stop; 0 for no limit.

    Raises
    ------
    ValueError
        Before any run is started, when a cell cannot be run.
    """
    check_jobs(cells, jobs)
    budget = TimeBudget(max_minutes)
    finished = FinishedRuns(cells[0].results)
    outcomes = [_before(cell, finished) for cell in cells]
    left = [outcome for outcome in outcomes if outcome.status is None]
    options: dict[str, Any] = {"client_cpus": client_cpus, "client_gpus": client_gpus}
    with _first_engine_ahead(left):
        _preflight([outcome.cell.config for outcome in left], **options)
        for outcome in left:
            if not outcome.cell.config.resume:
                # All of them now: the command that continues this one takes what is there.
                start_over(outcome.cell.config)
        _run_all(left, budget, jobs, **options)
    for outcome in outcomes:
        if outcome.status == ExitStatus.STOPPED:  # by another command, perhaps, and over by now
            _look_again(outcome)
    return outcomes


def _first_engine_ahead(left: Sequence[Outcome]) -> AbstractContextManager[None]:
    """Start what the first cell waits for otherwise, beside the checks of all cells."""
    if not left or left[0].cell.config.engine != "flower":
        return nullcontext()
    from experiments.running.flower import superlink_ahead

    return superlink_ahead()


def _run_all(left: Sequence[Outcome], budget: TimeBudget, jobs: int, **options: Any) -> None:
    if jobs > 1 and len(left) > 1:
        workers = Workers(jobs)
        with workers.stopped_by_interrupt(), ThreadPoolExecutor(jobs) as threads:
            list(threads.map(lambda outcome: _run(outcome, budget, workers.run), left))
        return
    interrupted = threading.Event()

    def run_here(config: RunConfig) -> ExitStatus:
        return attempt(config, interrupted=interrupted, **options)

    for outcome in left:
        if interrupted.is_set():
            return
        _run(outcome, budget, run_here)


def _before(cell: Cell, finished: FinishedRuns) -> Outcome:
    """Return the outcome of a cell before the runs; its status is None if it has to be run."""
    outcome = Outcome(cell, cell.path)
    if cell.config.resume and (path := finished.path(cell)):
        own = path == cell.path
        if odd := _to_mend(path):
            outcome.damaged = own
            what = "is opened again, which writes it anew" if own else "is left out"
            print(f"{odd}: the run {what}", flush=True)
        elif other := other_weights(cell.config, read_summary(path)):
            raise ConfigError(
                f"{path} {other}: --name NAME keeps both runs, and --no-resume starts over"
            )
        else:
            outcome.path, outcome.status, outcome.word = path, ExitStatus.FINISHED, BEFORE
            outcome.word += "" if own else f" as {path.relative_to(cell.results).parent}"
    elif cell.config.resume:
        _look_again(outcome)
    return outcome


def _look_again(outcome: Outcome) -> None:
    """Note in the outcome of a cell whether another command runs it, or has finished it."""
    state = progress(outcome.cell.config).state
    if state is State.RUNNING:
        outcome.status, outcome.word = ExitStatus.STOPPED, ELSEWHERE
    elif state is State.FINISHED:
        outcome.status, outcome.word = ExitStatus.FINISHED, BEFORE


def _to_mend(path: Path) -> str:
    """Return what is wrong with the records of a finished run; empty if nothing is."""
    try:
        return disagreement(path)
    except CheckpointError as error:
        return str(error).partition(": ")[0]


def _preflight(configs: Sequence[RunConfig], client_cpus: int, client_gpus: float | None) -> None:
    """Check all configurations; data and model are built once for cells that share them."""
    built = set()
    for config in configs:
        # Not the seed, which does not decide whether data and model can be built.
        values = config.values_that_decide("build", "partition")
        key = (config.engine == "centralized", *values.items())
        preflight(config, client_cpus=client_cpus, client_gpus=client_gpus, build=key not in built)
        built.add(key)


def _run(
    outcome: Outcome, budget: TimeBudget, run: Callable[[RunConfig], ExitStatus | None]
) -> None:
    """Run a cell, unless another command does or the time is used up, and record its outcome."""
    if not outcome.damaged:
        _look_again(outcome)
        if outcome.status is not None:
            return
    config = budget.limited(outcome.cell.config)
    if config is None:
        outcome.status = ExitStatus.STOPPED
        return
    before = read_summary(outcome.path)
    outcome.status = run(config)
    if outcome.status is not None:
        outcome.word = outcome.status.name.lower()
    if outcome.status == ExitStatus.FAILED:
        outcome.word += f": {why_failed(outcome.path, before)}"


def exit_status(outcomes: Sequence[Outcome]) -> ExitStatus:
    """Return the exit status of the command, which is the worst among its cells."""
    statuses = {outcome.status for outcome in outcomes}
    if None in statuses:
        return ExitStatus.INTERRUPTED
    order = (ExitStatus.INTERRUPTED, ExitStatus.FAILED, ExitStatus.STOPPED)
    return next((status for status in order if status in statuses), ExitStatus.FINISHED)


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """Print a line per cell: final accuracies, minutes, outcome."""
    width = max(len(outcome.cell.label) for outcome in outcomes)
    print(flush=True)
    for outcome in outcomes:
        line = [f"{outcome.cell.label:<{width}}"]
        summary = read_summary(outcome.path) if outcome.status is not None else {}
        final = summary.get("final") or {}
        for split in ("val", "test"):
            value = final.get(f"{split}_accuracy")
            line.append(f"{split} {value:6.1%}" if value is not None else " " * (len(split) + 7))
        minutes = sum(session["seconds"] for session in summary.get("sessions", ())) / 60
        line.append(f"{minutes:7.1f} min" if summary else " " * 11)
        line.append(outcome.word)
        print("  ".join(line), flush=True)
    done = sum(outcome.status == ExitStatus.FINISHED for outcome in outcomes)
    print(f"{done} of {len(outcomes)} cells are finished", flush=True)
    if done < len(outcomes):
        print(to_continue(), flush=True)
