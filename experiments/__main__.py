"""`python -m experiments COMMAND`: tables of presets, from the command line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import RESULTS
from experiments.arguments import check, parse
from experiments.reporting.collect import collect
from experiments.reporting.comparison import save_comparison
from experiments.reporting.records import RecordError, kept_cells
from experiments.reporting.report import kept_tables, write_report
from experiments.running.cells import Cell, FinishedRuns, identity, make_cells
from experiments.running.launch import ExitStatus
from experiments.running.plan import print_plan
from experiments.running.presets import check_pattern, load_table, parse_overrides, select, tables
from experiments.running.table_run import BEFORE, ELSEWHERE, exit_status, print_summary, run_cells
from fedta_app.errors import ConfigError, RunError
from fedta_app.runs.directory import run_path

_MOST_LINES = 10  # runs that one comparison can show


def main(arguments: list[str] | None = None) -> ExitStatus:
    """Run the command and return its exit status."""
    options = parse(arguments)
    try:
        check(options)
        status = _COMMANDS[options.command](options)
        sys.stdout.flush()  # here, where a closed pipe is caught
    except (ValueError, RunError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return ExitStatus.REFUSED
    except BrokenPipeError:  # whoever reads, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.OUTPUT_CLOSED
    except OSError as error:  # a full disk, a folder that is not ours
        print(f"error: {error}", file=sys.stderr, flush=True)
        return ExitStatus.FAILED
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", flush=True)
        return ExitStatus.INTERRUPTED
    return status


def _list(options: argparse.Namespace) -> ExitStatus:
    for name in tables():
        table = load_table(name)
        print(f"{name}: {table.question}" if table.question else name)
        for preset in table.presets:
            print(f"  {preset.label}")
    return ExitStatus.FINISHED


def _cells(options: argparse.Namespace) -> list[Cell]:
    """Return the cells that the options select."""
    overrides: dict[str, Any] = parse_overrides(options.overrides)
    for key in ("engine", "device", "resume"):
        if (value := getattr(options, key, None)) is not None:
            overrides[key] = value
    for key in ("results-dir", "data-dir"):
        if (folder := getattr(options, key.replace("-", "_"))) is not None:
            overrides[key] = str(Path(folder).expanduser().absolute())  # Flower works elsewhere
    table, chosen = select(options.selection, options.scale)
    return make_cells(chosen, overrides, options.seeds or table.seeds)


def _cells_left(options: argparse.Namespace) -> list[Cell]:
    """Return the cells that the options select, without those that are to be skipped."""
    cells = _cells(options)
    if not options.skip_kept:
        return cells
    kept = kept_cells(RESULTS)
    left = [cell for cell in cells if identity(cell.config) not in kept]
    print(f"{len(cells) - len(left)} of {len(cells)} cells are kept in {RESULTS}: left out")
    return left


def _plan(options: argparse.Namespace) -> ExitStatus:
    if cells := _cells_left(options):
        print_plan(cells, session_minutes=options.session_minutes, jobs=options.jobs)
    return ExitStatus.FINISHED


def _run(options: argparse.Namespace) -> ExitStatus:
    cells = _cells_left(options)
    if not cells:
        return ExitStatus.FINISHED
    outcomes = run_cells(
        cells,
        client_cpus=options.client_cpus,
        client_gpus=options.client_gpus,
        jobs=options.jobs,
        max_minutes=options.max_minutes or 0.0,
    )
    if len(outcomes) > 1:
        print_summary(outcomes)
    elif outcomes[0].word.startswith(BEFORE):
        print(f"{BEFORE}: {outcomes[0].path}; --no-resume starts it over", flush=True)
    elif outcomes[0].word == ELSEWHERE:
        print(f"{ELSEWHERE}: {outcomes[0].path}", flush=True)
    status = exit_status(outcomes)
    own = all(outcome.path == outcome.cell.path for outcome in outcomes)
    if status == ExitStatus.FINISHED and own:
        _compare(cells)
    return status


def _compare(cells: Sequence[Cell]) -> None:
    """Draw the first seed of each preset, where there are several but not too many."""
    first = list({cell.config.name: cell.config for cell in reversed(cells)}.values())[::-1]
    if 1 < len(first) <= _MOST_LINES:
        path = run_path(first[0]).parents[1] / "comparison.png"
        save_comparison(path, first)
        print(f"figure: {path}", flush=True)


def _tune(options: argparse.Namespace) -> ExitStatus:
    try:
        from experiments.running.tune import DEFAULT_SPACE, Study
        from experiments.running.tuned import changed_presets, save_study, write_choice
    except ModuleNotFoundError as error:
        raise ConfigError(
            'tuning needs optuna, which is not installed: pip install -e ".[dev]"'
        ) from error
    table, chosen = select(options.selection, options.scale)
    if len(chosen) != 1:
        raise ConfigError(f"{options.selection!r} is {len(chosen)} presets: tune one, --for others")
    options.seeds = 1
    (cell,) = _cells(options)
    if options.pattern:
        check_pattern(options.pattern, [preset.name for preset in table.presets], "--for")
    study = Study(cell.config, cell.preset.label, table.tune or DEFAULT_SPACE)
    status = study.run(
        options.trials,
        options.max_minutes or 0.0,
        client_cpus=options.client_cpus,
        client_gpus=options.client_gpus,
    )
    if status != ExitStatus.FINISHED:
        return status
    best = study.chosen()
    label = cell.preset.label
    save_study((options.out or RESULTS) / "tuning" / label.replace("/", "-"), best, label)
    path = write_choice(table.name, options.scale, options.pattern or cell.preset.name, best.values)
    words = ", ".join(f"{key} = {value}" for key, value in best.values.items())
    print(f"chosen: {words} (validation accuracy {best.accuracy:.1%}), written to {path}")
    changed = changed_presets(table, load_table(table.name, options.scale))
    print("\n".join(f"  {line}" for line in changed) or "  no preset changed by it")
    return ExitStatus.FINISHED


def _collect(options: argparse.Namespace) -> ExitStatus:
    cells, out = _cells(options), options.out or RESULTS
    finished = FinishedRuns(cells[0].results)
    first = cells[0].config.seed
    kept = [
        collect(cell, path, out, with_classes=cell.config.seed == first)
        for cell in cells
        if (path := finished.path(cell.config))
    ]
    print(f"{len(kept)} of {len(cells)} cells are finished, and kept in {out.absolute()}")
    return ExitStatus.FINISHED


def _report(options: argparse.Namespace) -> ExitStatus:
    records = options.records or RESULTS
    chosen = [load_table(options.table, options.scale)] if options.table else kept_tables(records)
    if not chosen:
        raise RecordError(f"{records} holds no cells: finish some, and collect them")
    out, status = options.out or records, ExitStatus.FINISHED
    for table in chosen:
        try:
            checks = write_report(table, records, out)
        except (RecordError, ConfigError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            status = ExitStatus.FAILED
            continue
        print(f"{table.label}: {(out / table.label / 'report.md').absolute()}")
        for line in checks:
            print(f"  {line}", flush=True)
    return status


_COMMANDS: dict[str, Callable[[argparse.Namespace], ExitStatus]] = {
    "list": _list,
    "run": _run,
    "plan": _plan,
    "tune": _tune,
    "collect": _collect,
    "report": _report,
}


if __name__ == "__main__":
    sys.exit(main())
