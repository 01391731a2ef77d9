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


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    """Return the cells that the options select."""
    overrides: dict[str, Any] = parse_overrides(options.overrides)
    for key in ("engine", "device", "resume"):
        if (value := getattr(options, key, None)) is not None:
            overrides[key] = value
    for key in ("results-dir", "data-dir"):
        if (given := getattr(options, key.replace("-", "_"))) is not None:
            overrides[key] = str(given)
    name = getattr(options, "name", None)
    if name and "name" in overrides:
        raise ConfigError(
            f"--name {name} and --set name={overrides['name']} are two names: give one"
        )
    table, chosen = select(options.selection, options.scale)
    return make_cells(chosen, overrides, options.seeds or table.seeds, name)


def check_weights(options: argparse.Namespace, cells: Iterable[Cell]) -> None:
    """Raise ConfigError if the cells need a weights file of their scale that is not there."""
    if options.scale:
        load_scale(options.scale).check_weights(cell.config.weights for cell in cells)


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
