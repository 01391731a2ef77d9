"""`collect`: keep finished cells as small records."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import RESULTS
from experiments.commands.cells import chosen_cells
from experiments.exit_status import ExitStatus
from experiments.reporting.collect import LastData, collect, record_folder
from experiments.running.cells import (
    Cell,
    FinishedRuns,
    State,
    differing_keys,
    progress,
    read_config,
    run_folders,
)
from experiments.running.presets import Table, load_table
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.runs.command import typed_command

_MOST_KEYS = 6  # in which a run that is like a missing cell may differ from it
_NOT_RUN = "not run"


def run(options: argparse.Namespace) -> ExitStatus:
    """Copy what the reports need of each finished cell into the folder of records."""
    cells, out = chosen_cells(options), (options.out or RESULTS).absolute()
    finished = FinishedRuns(cells[0].results)
    first, last = cells[0].config.seed, LastData()
    missing, replaced, again, refused = [], set[str](), 0, 0
    for cell in cells:
        if (path := finished.path(cell)) is None:
            missing.append(cell)
            continue
        before = read_config(record_folder(cell, out))
        try:
            collect(cell, path, out, with_classes=cell.config.seed == first, last=last)
        except (ValueError, RunError, OSError) as error:  # refused, damaged, or not to be read
            print(f"error: {cell.label}: {error}", file=sys.stderr)
            refused += 1
            continue
        if before:
            again += 1
            replaced.update(_in_words(differing_keys(cell.config, before)))
    if replaced:
        print(
            f"warning: records with {', '.join(sorted(replaced))} were in {out}, and are replaced: "
            "--out DIR keeps variants apart"
        )
    kept = len(cells) - len(missing) - refused
    if kept:
        earlier = f", {again} in place of earlier records" if again else ""
        print(f"{kept} of {len(cells)} cells are finished, and kept in {out}{earlier}")
    elif refused:
        print(f"nothing was written to {out}")
    else:
        print(f"none of {len(cells)} cells is finished, and nothing was written to {out}")
    if missing:
        print(f"missing from {cells[0].results}:")
        lines = _reasons(missing, load_table(options.selection.split("/")[0], options.scale))
        if not kept and all(line.endswith(f": {_NOT_RUN}") for line in lines):
            lines = ["none of them was run there"]
        print("\n".join(f"  {line}" for line in lines))
        if any(progress(cell.config).state is State.OTHER for cell in missing):
            print(
                "to keep runs with other settings: collect with the same --set options", flush=True
            )
        else:
            print(f"to run what is missing: {_run_command()}", flush=True)
    if refused:
        return ExitStatus.REFUSED
    return ExitStatus.FINISHED if kept else ExitStatus.FAILED


def _reasons(missing: Sequence[Cell], table: Table) -> list[str]:
    """Return why the cells are not there; seeds of a preset with the same reason share a line."""
    variants = _variants(missing[0].results, table)
    seeds: dict[tuple[str, str], list[int]] = {}
    for cell in missing:
        reason = _reason(cell, variants.get(cell.preset.name, []))
        seeds.setdefault((cell.config.name, reason), []).append(cell.config.seed)
    return [
        f"{name} seed{'s' * (len(those) > 1)} {', '.join(map(str, those))}: {reason}"
        for (name, reason), those in seeds.items()
    ]


def _variants(results: Path, table: Table) -> dict[str, list[tuple[Path, RunConfig]]]:
    """Return the runs with names of their own, by the preset that they are nearest to."""
    presets = {preset.name: preset.config({}) for preset in table.presets}
    found: dict[str, list[tuple[Path, RunConfig]]] = {}
    for folder in run_folders(results):
        config = read_config(folder)
        if config is not None and not config.name.startswith(f"{table.label}/"):
            distances = {n: len(differing_keys(preset, config)) for n, preset in presets.items()}
            nearest = min(distances, key=lambda name: distances[name])
            found.setdefault(nearest, []).append((folder, config))
    return found


def _reason(cell: Cell, variants: Sequence[tuple[Path, RunConfig]]) -> str:
    """Return how far a cell is, and which run of its seed is nearly the same."""
    found = progress(cell.config)
    if found.state is State.OTHER and (other := read_config(cell.path)):
        variants = [(cell.path, other)]
    elif found.state is not State.WAITING:
        return str(found)
    near = [
        (differing_keys(cell.config, config), folder)
        for folder, config in variants
        if config.seed == cell.config.seed
    ]
    keys, folder = min(near, key=lambda entry: len(entry[0]), default=({}, cell.path))
    if not 0 < len(keys) <= _MOST_KEYS:
        return _NOT_RUN
    return f"{_NOT_RUN}, but with {', '.join(_in_words(keys))}: {folder}"


def _in_words(keys: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {value!r}" for key, value in keys.items()]


def _run_command() -> str:
    """Return the command that runs what this one collects, with the same options."""
    words = shlex.split(typed_command() or "python -m experiments collect")
    while "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    words = [word for word in words if not word.startswith("--out=")]
    words[words.index("collect")] = "run"
    return shlex.join(words)
