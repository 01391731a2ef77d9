"""`evaluate`: what the model of a finished run gets right, by class and by client."""

import argparse

from experiments import load_run
from experiments.exit_status import ExitStatus
from fedta_app.analysis.classification import FOLDER, evaluate_run


def run(options: argparse.Namespace) -> ExitStatus:
    """Evaluate the model, write tables and a figure into the run directory, and print the gist."""
    found = load_run(options.run)
    evaluation = evaluate_run(
        found,
        weights=options.weights,
        split=options.split,
        device=options.device or "",
        data_dir=str(options.data_dir or ""),
    )
    print(*evaluation.lines(), sep="\n")
    print(f"written: {evaluation.save(found.path / FOLDER)}", flush=True)
    return ExitStatus.FINISHED
