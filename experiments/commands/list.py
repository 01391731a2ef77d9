"""`list`: show the tables and their presets, or what one preset sets."""

import argparse

import tomli_w

from experiments.exit_status import ExitStatus
from experiments.running.presets import Preset, Table, load_table, parse_overrides, select, tables
from fedta_app.errors import ConfigError


def run(options: argparse.Namespace) -> ExitStatus:
    """Print the presets of each table, or of the one that is named; of one preset, its keys."""
    one = None
    if options.shown:
        table, chosen = select(options.shown, options.scale)
        if len(chosen) == 1 and "/" in options.shown.strip("/"):
            (one,) = chosen
    if options.overrides and not one:
        raise ConfigError("list takes --set where it shows one preset, such as demo/masked")
    if one:
        print(f"# {one.label}: the keys whose values are not the defaults")
        print(_keys(one, options.overrides), end="")
    elif options.shown:
        _print_presets(table, chosen)
    else:
        for name in tables():
            table = load_table(name, options.scale)
            _print_presets(table, table.presets)
    return ExitStatus.FINISHED


def _print_presets(table: Table, presets: list[Preset]) -> None:
    print(f"{table.label}: {table.question}" if table.question else table.label)
    for preset in presets:
        print(f"  {preset.label}")


def _keys(preset: Preset, overrides: list[str]) -> str:
    """Return the resolved keys of a preset that differ from the defaults, as TOML."""
    from fedta_app.config import RunConfig  # imports torch, which the lists need not

    defaults = RunConfig().to_mapping()
    found = preset.config(parse_overrides(overrides)).to_mapping()
    return tomli_w.dumps({key: value for key, value in found.items() if value != defaults[key]})
