"""`tune`: search a preset's hyper-parameters."""

import argparse

from experiments import RESULTS
from experiments.commands.cells import chosen_cells
from experiments.exit_status import ExitStatus
from experiments.running.presets import check_pattern, load_table, select
from fedta_app.errors import ConfigError


def run(options: argparse.Namespace) -> ExitStatus:
    """Search, and write the best trial's values where the presets read them."""
    try:
        from experiments.running.tune import DEFAULT_SPACE, Study
        from experiments.running.tuned import changed_presets, save_study, write_choice
    except ModuleNotFoundError as error:
        raise ConfigError(
            "tuning needs optuna, which is not installed: pip install optuna"
        ) from error
    table, chosen = select(options.selection, options.scale)
    if len(chosen) != 1:
        raise ConfigError(f"{options.selection!r} is {len(chosen)} presets: tune one, --for others")
    options.seeds = 1
    (cell,) = chosen_cells(options)
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
