"""`compare`: draw runs together, and say in what they differ."""

import argparse
from pathlib import Path

from experiments.exit_status import ExitStatus
from experiments.reporting.comparison import curves_figure
from experiments.reporting.frames import pipes, print_comparisons
from experiments.reporting.variants import (
    config_frame,
    differences_frame,
    figures_frame,
    find_variants,
)
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.files import write_atomically
from fedta_app.plotting import save_figure
from fedta_app.runs.command import typed_command


def run(options: argparse.Namespace) -> ExitStatus:
    """Print tables of figures, differences and differing keys; write them, and the curves."""
    if len(options.runs) < 2:
        raise ConfigError("compare takes at least two runs: run directories, or folders of seeds")
    results = Path(options.results_dir or RunConfig().results_dir).expanduser().absolute()
    variants = find_variants(options.runs, results)
    figures, keys = figures_frame(variants), config_frame(variants)
    found, notes = differences_frame(variants)
    parts = {"Figures": figures}
    if len(found):
        parts["Differences"] = print_comparisons(found)
    if len(keys):
        parts["What differs in the configurations"] = keys
    text, page = [], ["# Comparison", f"`{typed_command()}`"]
    for title, frame in parts.items():
        text += [f"{title}:", frame.to_string(index=False)]
        page += [f"## {title}", pipes(frame)]
    if not len(keys):
        notes.insert(0, "the configurations, weights, code and processor are the same")
    remarks = [f"note: {note}" for note in notes]
    folder = (options.out or Path("comparison")).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    figure = curves_figure(variants)
    for suffix in (".svg", ".png"):
        save_figure(folder / f"curves{suffix}", figure)
    page += ["\n".join(f"- {note}" for note in notes), "![Curves](curves.png)"]
    write_atomically(folder / "comparison.md", "\n\n".join(page) + "\n")
    figures.to_csv(folder / "figures.csv", index=False, lineterminator="\n")
    print("\n\n".join([*text, "\n".join(remarks)]))
    print(f"\nwritten: {folder / 'comparison.md'}, with curves.png and curves.svg", flush=True)
    return ExitStatus.FINISHED
