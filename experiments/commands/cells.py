"""The cells that the options of a command select."""

import argparse
from collections.abc import Iterable
from typing import Any

from experiments import RESULTS
from experiments.reporting.records import kept_cells
from experiments.running.cells import Cell, identity, make_cells
from experiments.running.presets import parse_overrides, select
from experiments.running.scales import load_scale
from fedta_app.errors import ConfigError

_NAMED = 3  # presets that a warning names


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    """Return the cells that the options select."""
    overrides: dict[str, Any] = parse_overrides(options.overrides)
    name = getattr(options, "name", None)
    for key in ("name", "engine", "device", "resume", "results-dir", "data-dir"):
        value = getattr(options, key.replace("-", "_"), None)
        if value is None:
            continue
        if key in overrides:
            raise ConfigError(
                f"--set {key}={overrides[key]} is not allowed with another option for {key}, which "
                f"is {value}: give one of the two"
            )
        if key != "name":
            overrides[key] = str(value) if key.endswith("-dir") else value
    table, chosen = select(options.selection, options.scale)
    return make_cells(chosen, overrides, options.seeds or table.seeds, name)


def check_weights(options: argparse.Namespace, cells: Iterable[Cell]) -> None:
    """Raise ConfigError if the cells need a weights file of their scale that is not there."""
    if options.scale:
        load_scale(options.scale).check_weights(cell.config.weights for cell in cells)


def rates_warning(options: argparse.Namespace, cells: Iterable[Cell]) -> str:
    """Return a sentence on cells without the rates that their table asks for; empty if none are.

    The run is no mistake, to try the table say, but its accuracy answers another question.
    """
    table, _ = select(options.selection, options.scale)
    if not table.rates_from or "lr" in parse_overrides(options.overrides):
        return ""
    names = list(dict.fromkeys(c.preset.name for c in cells if "lr" not in c.preset.tuned))
    if not names:
        return ""
    command = f"{table.rates_from} --scale {options.scale}" if options.scale else table.rates_from
    more = f" and {len(names) - _NAMED} more presets" if len(names) > _NAMED else ""
    return (
        f"the table {table.name} compares at learning rates that `{command}` finds, and no tuned "
        f"file has those of {', '.join(names[:_NAMED])}{more}: without them the accuracies do not "
        "answer its question"
    )


def cells_left(options: argparse.Namespace) -> list[Cell]:
    """Return the cells that the options select, without those that are to be skipped."""
    cells = chosen_cells(options)
    check_weights(options, cells)
    if not options.skip_kept:
        return cells
    kept = kept_cells(RESULTS)
    left = [cell for cell in cells if identity(cell.config) not in kept]
    print(f"{len(cells) - len(left)} of {len(cells)} cells are kept in {RESULTS}: left out")
    return left
