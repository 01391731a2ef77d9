"""`python -m experiments plan TABLE`: how long a table will take, before anything runs."""

import datetime
import heapq
import math
from collections.abc import Sequence

from experiments.running.cells import Cell, FinishedRuns, Progress, State, progress
from experiments.running.cost import Forecast
from experiments.running.launch import check_clients
from experiments.running.workers import check_jobs, threads_of_each
from fedta_app.device.cuda import resolve_device
from fedta_app.pace.schedule import schedule_warning


def print_plan(cells: Sequence[Cell], *, session_minutes: float, jobs: int) -> None:
    """Print the progress and time of each cell, and how many sessions are left.

    Seeds of a preset with the same progress share a line.

    Parameters
    ----------
    session_minutes : float
        Length of a session, such as a Colab session.
    jobs : int
        Number of cells that run at a time.

    Raises
    ------
    ConfigError
        When `run` would refuse the cells before it starts them.
    """
    check_jobs(cells, jobs)
    for cell in cells:
        check_clients(cell.config)
    forecast = Forecast(cells[0].results, lambda line: print(f"{line} ...", flush=True))
    seeds: dict[tuple[str, ...], list[int]] = {}
    ends, done = [0.0] * jobs, 0  # when each of the processes is through with its cells
    finished = FinishedRuns(cells[0].results)
    for cell in cells:
        found = Progress(State.FINISHED) if finished.path(cell) else progress(cell.config)
        config = cell.config
        if jobs > 1 and not config.threads:
            config = config.with_values(threads=threads_of_each(jobs))
        estimate = forecast.of(config)
        left = estimate.left(found, cell.config.num_server_rounds)
        heapq.heapreplace(ends, ends[0] + left)
        done += found.state is State.FINISHED
        rounds = str(cell.config.num_server_rounds)
        times = (_clock(estimate.total), _clock(left))
        line = (cell.config.name, str(found), rounds, *times, estimate.source)
        seeds.setdefault(line, []).append(cell.config.seed)
    header = ("preset", "seeds", "state", "rounds", "takes", "left", "measured by")
    lines = [(line[0], ", ".join(map(str, those)), *line[1:]) for line, those in seeds.items()]
    _print_columns([header, *lines])
    for name, warning in {
        cell.config.name: schedule_warning(cell.config) for cell in cells
    }.items():
        if warning:
            print(f"warning: {name}: {warning}")
    devices = {resolve_device(cell.config.device).type for cell in cells}
    if jobs > 1 and "cuda" in devices:
        print(f"warning: the times are of runs alone on the GPU, which {jobs} would share")
    minutes = max(ends) / 60
    sessions = math.ceil(minutes / session_minutes)
    at_a_time = f", {jobs} at a time" if jobs > 1 else ""
    number = f"{len(cells)} cell{'s' * (len(cells) != 1)}{at_a_time}, {done} finished"
    print(
        f"{number}; about {_clock(60 * minutes)} left: "
        f"{sessions} session{'s' * (sessions != 1)} of {session_minutes:g} minutes"
    )


def _print_columns(lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    numbers = range(3, 6)
    for line in lines:
        cells = [
            text.rjust(width) if column in numbers else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), flush=True)


def _clock(seconds: float) -> str:
    """Return the seconds as h:mm:ss."""
    return str(datetime.timedelta(seconds=round(seconds)))
