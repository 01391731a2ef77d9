"""Running the cells of a table: finished ones are skipped, failed ones do not stop the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.running.cells import Cell, FinishedRuns, State, progress, read_summary
from experiments.running.launch import (
    FAILED,
    FINISHED,
    INTERRUPTED_RUN,
    STOPPED,
    attempt,
    preflight,
)
from experiments.running.workers import NO_TIME, Session, run_side_by_side
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError

BEFORE, ELSEWHERE = "finished before", "running in another process"
_NAMES = {
    FINISHED: "finished", FAILED: "failed", STOPPED: "stopped", INTERRUPTED_RUN: "interrupted"
}  # fmt: skip


@dataclass
class Outcome:
    """What became of a cell: its exit status, None where it had no turn, and a word on it.

    The path is that of its run, which is another table's where they share the cell.
    """

    cell: Cell
    path: Path
    status: int | None = None
    word: str = "waiting"


def run_cells(
    cells: Sequence[Cell],
    *,
    client_cpus: int,
    client_gpus: float | None,
    jobs: int,
    max_minutes: float = 0.0,
) -> list[Outcome]:
    """Run what is left of the cells, in their order, and return what became of each.

    Parameters
    ----------
    jobs : int
        Cells at a time, each in a process of its own.
    max_minutes : float
        Stop cleanly before so many minutes for all cells together; 0 for no limit.

    Raises
    ------
    ValueError
        Of one sentence, before any run is started.
    """
    if jobs > 1 and any(cell.config.engine == "flower" for cell in cells):
        raise ConfigError(
            f"--jobs {jobs} is not allowed with engine = 'flower', which runs clients side by "
            "side itself: use --engine in-process, or --jobs 1"
        )
    finished = FinishedRuns(cells[0].results)
    outcomes = [_before(cell, finished) for cell in cells]
    left = [outcome for outcome in outcomes if outcome.status is None]
    _preflight([outcome.cell.config for outcome in left], client_gpus)
    session = Session(max_minutes)
    if jobs > 1 and len(left) > 1:
        statuses = run_side_by_side([outcome.cell.config for outcome in left], session, jobs=jobs)
        for outcome, status in zip(left, statuses, strict=True):
            _note(outcome, status)
        return outcomes
    for outcome in left:
        config = session.limited(outcome.cell.config)
        if config is None:
            outcome.status = STOPPED
            continue
        _note(outcome, attempt(config, client_cpus=client_cpus, client_gpus=client_gpus))
        if outcome.status == INTERRUPTED_RUN:
            break
    return outcomes


def _before(cell: Cell, finished: FinishedRuns) -> Outcome:
    """Return the outcome of a cell that needs no turn, or has none now."""
    if not cell.config.resume:
        return Outcome(cell, cell.path)
    if path := finished.path(cell.config):
        elsewhere = "" if path == cell.path else f" as {path.relative_to(cell.results).parent}"
        return Outcome(cell, path, FINISHED, BEFORE + elsewhere)
    if progress(cell.config).state is State.RUNNING:
        return Outcome(cell, cell.path, STOPPED, ELSEWHERE)
    return Outcome(cell, cell.path)


def _preflight(configs: Sequence[RunConfig], client_gpus: float | None) -> None:
    """Refuse what would fail later; data and model are built once for cells that share them."""
    built = set()
    for config in configs:
        # Not the seed: it decides which images and weights are drawn, not whether there are any.
        values = config.values_that_decide("build", "partition")
        key = (config.engine == "centralized", *values.items())
        preflight(config, client_gpus=client_gpus, build=key not in built)
        built.add(key)


def _note(outcome: Outcome, status: int | None) -> None:
    outcome.status = status
    if status is None or status == NO_TIME:
        outcome.status = STOPPED if status == NO_TIME else None
        return
    outcome.word = _NAMES.get(status, "failed")
    if status not in _NAMES:  # a worker that was killed
        outcome.status = FAILED
    if outcome.status == FAILED:
        reason = read_summary(outcome.path).get("reason") or "it ended before it began"
        outcome.word += f": {reason}"


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """Return the exit status of the command: the worst of its cells'."""
    statuses = [outcome.status for outcome in outcomes]
    if None in statuses or INTERRUPTED_RUN in statuses:
        return INTERRUPTED_RUN
    return next((status for status in (FAILED, STOPPED) if status in statuses), FINISHED)


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """Print a line per cell: how far it is, its final figures, what it took."""
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
    done = sum(outcome.status == FINISHED for outcome in outcomes)
    print(f"{done} of {len(outcomes)} cells are finished", flush=True)
    if done < len(outcomes):
        print("the same command goes on with the others", flush=True)
