"""`export`: hand on the model of a finished run as a file that loads without it."""

import argparse

from experiments import load_run
from experiments.exit_status import ExitStatus
from fedta_app.finished.export import export_run


def run(options: argparse.Namespace) -> ExitStatus:
    """Write the file and its model card, and print the Python that loads the file."""
    made = export_run(load_run(options.run), options.file, weights=options.weights)
    print(f"weights: {made.file}")
    print(f"model card: {made.card}")
    print(f"It loads with {made.library}:\n\n{made.code}", flush=True)
    return ExitStatus.FINISHED
