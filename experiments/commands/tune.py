"""`tune`: search a preset's hyper-parameters."""

import argparse
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from experiments import RESULTS
from experiments.commands.cells import check_weights, chosen_cells
from experiments.exit_status import ExitStatus
from experiments.reporting.collect import portable_command, without_paths
from experiments.running.cells import Cell, differing_keys
from experiments.running.presets import check_pattern, load_table, parse_overrides, select
from fedta_app.errors import ConfigError
from fedta_app.runs.command import typed_command
from fedta_app.runs.directory import run_path

if TYPE_CHECKING:
    from experiments.running.tuning.study import Chosen

_LONGEST_NAME = 60  # characters of a name that is made of overrides


def run(options: argparse.Namespace) -> ExitStatus:
    """Search, and write the best trial's values where the presets read them.

    A search under overrides is not one of the preset: its outcome is kept under a name of its own,
    and no preset reads it. Neither is a best trial written that is no better than no training.
    """
    try:
        from experiments.running.tuning.outcome import changed_presets, save_study, write_choice
        from experiments.running.tuning.space import DEFAULT_SPACE
        from experiments.running.tuning.study import Study, searching
    except ModuleNotFoundError as error:
        raise ConfigError(
            "tuning needs optuna, which is not installed: pip install optuna"
        ) from error
    table, chosen = select(options.selection, options.scale)
    if len(chosen) != 1:
        raise ConfigError(
            f"{options.selection!r} names {len(chosen)} presets, and tune takes one preset, such "
            f"as {table.name}/{chosen[0].name}; --for PATTERN gives its choice to others"
        )
    options.seeds = 1
    (cell,) = chosen_cells(options)
    check_weights(options, [cell])
    if options.pattern:
        check_pattern(options.pattern, [preset.name for preset in table.presets], "--for")
    space = parse_overrides(options.grid) or table.tune or DEFAULT_SPACE
    overrides = _overrides(cell, space)
    name = options.name or _name(overrides)
    label = f"{cell.preset.label}/{name}" if name else cell.preset.label
    place = run_path(cell.config.with_values(name=f"tune/{label}")).parent
    place.mkdir(parents=True, exist_ok=True)
    with searching(place):
        study = Study(cell.config, label, space)
        status = study.run(
            options.trials,
            options.max_minutes or 0.0,
            client_cpus=options.client_cpus,
            client_gpus=options.client_gpus,
        )
        if status != ExitStatus.FINISHED:
            return status
        best, codes = study.chosen(), study.codes()
    why_not = _why_not_written(best, name, overrides)
    folder = (options.out or RESULTS) / "tuning" / label.replace("/", "-")
    searched = _searched(cell, space, overrides, why_not, codes)
    save_study(folder, best, label, {**searched, "at-edge": best.at_edge})
    _say(best, folder)
    pattern = options.pattern or cell.preset.name
    if why_not:
        print(f"warning: no preset takes these values: {why_not}")
        print("to use them all the same, add to the table's tuned.toml:")
        print(tomli_w.dumps({pattern: best.values}), end="", flush=True)
        return ExitStatus.FINISHED
    path = write_choice(table.name, options.scale, pattern, best.values)
    changed = changed_presets(table, load_table(table.name, options.scale))
    print(f"written to {path}:")
    print("\n".join(f"  {line}" for line in changed) or "  no preset changed by it", flush=True)
    return ExitStatus.FINISHED


def _why_not_written(best: "Chosen", name: str, overrides: Mapping[str, Any]) -> str:
    """Return why no preset takes the best values; empty if it does."""
    if not best.trained:
        start = "unknown" if best.start is None else f"{best.start:.1%}"
        return f"the best trial is no better than no training (round 0: {start})"
    if not name:
        return ""
    under = ", ".join(f"{key} = {value!r}" for key, value in overrides.items())
    return f"the search has a name of its own, {name}" + (under and f" (it was with {under})")


def _say(best: "Chosen", folder: Path) -> None:
    words = ", ".join(f"{key} = {value}" for key, value in best.values.items())
    print(f"best trial: {words} (validation accuracy {best.accuracy:.1%}); kept in {folder}")
    for key, which in best.at_edge.items():
        print(
            f"warning: {key} = {best.values[key]} is the {which} of the values that were tried, so "
            "that a better one may lie beyond: search on with a longer --grid; no trial runs again"
        )


def _overrides(cell: Cell, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys by which the search is not one of the preset as its table runs it.

    Another seed is no such key: a search may well use other seeds than those that are reported.
    """
    preset = cell.preset.config({"seed": cell.config.seed})
    found = differing_keys(preset, cell.config)
    return {key: value for key, value in found.items() if key not in space and value is not None}


def _name(overrides: Mapping[str, Any]) -> str:
    """Return a name for a search under overrides, such as num-server-rounds=12; "" without any."""
    words = "-".join(f"{key}={value}" for key, value in overrides.items())
    name = re.sub(r"[^A-Za-z0-9._+=-]", "_", words).replace("..", "_")
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(words.encode()).hexdigest()[:8]
        name = f"{name[:_LONGEST_NAME].rstrip('.')}-{digest}"
    return name


def _searched(
    cell: Cell,
    space: Mapping[str, Any],
    overrides: Mapping[str, Any],
    why_not: str,
    codes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what the record of a search says of what was searched, with which code."""
    keys = cell.config.to_mapping()
    shown = ("dataset", "model", "weights", "num-server-rounds", "seed")
    found = {
        "preset": cell.preset.label,
        "command": portable_command(typed_command() or ""),
        "commit": ", ".join(sorted({str(code.get("commit")) for code in codes})),
        "not-committed": sorted({name for code in codes for name in code.get("changed") or ()}),
        "not-written-because": why_not,
        **{key: keys[key] for key in shown},
        "space": dict(space),
        "overrides": dict(overrides),
    }
    cleaned: dict[str, Any] = without_paths(found)
    return cleaned
