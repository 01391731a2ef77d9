"""`list`: show the tables and their presets."""

import argparse

from experiments.exit_status import ExitStatus
from experiments.running.presets import load_table, tables


def run(options: argparse.Namespace) -> ExitStatus:
    """Print each table's question and the presets that answer it."""
    for name in tables():
        table = load_table(name)
        print(f"{name}: {table.question}" if table.question else name)
        for preset in table.presets:
            print(f"  {preset.label}")
    return ExitStatus.FINISHED
