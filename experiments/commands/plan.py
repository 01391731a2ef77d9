"""`plan`: say what a table will take, before anything runs."""

import argparse

from experiments.commands.cells import cells_left, rates_warning
from experiments.exit_status import ExitStatus
from experiments.running.plan import print_plan


def run(options: argparse.Namespace) -> ExitStatus:
    """Print the time and the sessions that the cells which are not finished will take."""
    if cells := cells_left(options):
        print_plan(cells, session_minutes=options.session_minutes, jobs=options.jobs)
        if warning := rates_warning(options, cells):
            print(f"warning: {warning}", flush=True)
    return ExitStatus.FINISHED
