"""`collect`: keep finished cells as small records."""

import argparse

from experiments import RESULTS
from experiments.commands.cells import chosen_cells
from experiments.exit_status import ExitStatus
from experiments.reporting.collect import collect
from experiments.running.cells import FinishedRuns


def run(options: argparse.Namespace) -> ExitStatus:
    """Copy what the reports need of each finished cell into the folder of records."""
    cells, out = chosen_cells(options), options.out or RESULTS
    finished = FinishedRuns(cells[0].results)
    first = cells[0].config.seed
    kept = [
        collect(cell, path, out, with_classes=cell.config.seed == first)
        for cell in cells
        if (path := finished.path(cell.config))
    ]
    print(f"{len(kept)} of {len(cells)} cells are finished, and kept in {out.absolute()}")
    return ExitStatus.FINISHED
