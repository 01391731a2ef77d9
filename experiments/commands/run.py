"""`run`: run a table, or one preset of it."""

import argparse
from collections.abc import Sequence

from experiments import RESULTS
from experiments.commands.cells import cells_left, rates_warning
from experiments.exit_status import ExitStatus
from experiments.reporting.comparison import save_comparison
from experiments.reporting.figures import check_figures
from experiments.reporting.frames import check_comparison
from experiments.reporting.versions import code_warnings
from experiments.running.cells import Cell, FinishedRuns, State, progress
from experiments.running.presets import select
from experiments.running.table_run import BEFORE, ELSEWHERE, exit_status, print_summary, run_cells
from fedta_app.runs.command import typed_command
from fedta_app.runs.directory import run_path

_MOST_LINES = 10  # runs that one comparison can show


def run(options: argparse.Namespace) -> ExitStatus:
    """Run the cells one after the other, or several at a time, and draw them together."""
    cells = cells_left(options)
    if not cells:
        return ExitStatus.FINISHED
    table, _ = select(options.selection, options.scale)
    check_figures(table)  # now, and not after days, when `report` draws them
    check_comparison(table)
    finished = FinishedRuns(cells[0].results)
    left = [cell for cell in cells if not cell.config.resume or not finished.path(cell)]
    warnings = [*code_warnings(left, RESULTS), rates_warning(options, left)] if left else []
    for warning in filter(None, warnings):
        print(f"warning: {warning}", flush=True)
    outcomes = run_cells(
        cells,
        client_cpus=options.client_cpus,
        client_gpus=options.client_gpus,
        jobs=options.jobs,
        max_minutes=options.max_minutes or 0.0,
    )
    if len(outcomes) > 1:
        print_summary(outcomes)
    elif outcomes[0].word.startswith(BEFORE):
        over = f"{typed_command()} --no-resume"
        print(f"{outcomes[0].word}: {outcomes[0].path}; to start it over: {over}", flush=True)
    elif outcomes[0].word == ELSEWHERE:
        print(f"{ELSEWHERE}: {outcomes[0].path}", flush=True)
    status = exit_status(outcomes)
    own = all(outcome.path == outcome.cell.path for outcome in outcomes)
    if status == ExitStatus.FINISHED and own:
        _compare(cells)
    return status


def _compare(cells: Sequence[Cell]) -> None:
    """Draw the first seed of each preset, where there are several but not too many."""
    first = list({cell.config.name: cell.config for cell in reversed(cells)}.values())[::-1]
    there = all(progress(config).state is State.FINISHED for config in first)
    if 1 < len(first) <= _MOST_LINES and there:  # another command may have started one over
        path = run_path(first[0]).parents[1] / "comparison.png"
        save_comparison(path, first)
        print(f"figure: {path}", flush=True)
