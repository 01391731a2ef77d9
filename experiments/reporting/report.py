"""`python -m experiments report`: every table and figure, from the records in results/ alone.

    results/<table>/report.md     caption, table, comparisons, figures, gate
    results/<table>/table.tex     the table for a paper (booktabs)
    results/<table>/cells.csv  presets.csv  comparisons.csv
    results/<table>/figures/      SVG and PNG

The same records give the same bytes. What fails the sanity gate, or mixes data, weights or
settings, is refused.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import tomli_w

from experiments.reporting.figures import check_figures, save_figures
from experiments.reporting.frames import (
    ALPHA,
    EQUIVALENT,
    cells_frame,
    comparisons_frame,
    page_frame,
    pipes,
    presets_frame,
    print_comparisons,
    trajectories_frame,
)
from experiments.reporting.gate import Check, sanity_gate
from experiments.reporting.origin import check_origin, commits, departures, hardware
from experiments.reporting.records import CELLS, Record, RecordError, by_preset, read_records
from experiments.running.presets import Table, load_table, tables
from experiments.running.scales import scales
from fedta_app.files import write_atomically

_ON_THE_WAY = (
    "Validation accuracy, %: before training, then the lowest, the mean and the last of the rounds "
    "that were measured. A learning rate that ends at zero can hide how far it had fallen."
)
_ONLY_SEEDS = (
    "All of this is about other seeds. What all seeds share (a backbone, a split, the images that "
    "are measured on) varies in no interval and no test."
)
_MOST_COMMANDS = 4  # that a report names


def kept_tables(results: Path) -> list[Table]:
    """Return the tables, at every scale, of which there are records."""
    return [
        load_table(name, scale)
        for name in tables()
        for scale in ("", *scales())
        if (results / (f"{name}-{scale}" if scale else name) / CELLS).is_dir()
    ]


def write_report(table: Table, results: Path, out: Path) -> list[str]:
    """Write a table's report; return its origin, the caption's notes and what its gate says.

    Raises
    ------
    RecordError
        When there are no records, or they cannot be one table; nothing is written then.
    ConfigError
        When the report names a kind of figure that does not exist.
    """
    check_figures(table)
    records = read_records(table, results)
    notes = check_origin(records, results / table.label)
    checks = sanity_gate(records)
    if failed := [check for check in checks if check.holds is False]:
        raise RecordError(
            f"{table.label} fails its sanity gate: {failed[0].name} ({failed[0].detail})"
        )
    folder = out / table.label
    folder.mkdir(parents=True, exist_ok=True)
    caption = _caption(table, records, notes)
    page, comparisons = page_frame(table, records), comparisons_frame(table, records)
    write_atomically(folder / "cells.csv", _csv(cells_frame(records)))
    write_atomically(folder / "presets.csv", _csv(presets_frame(records)))
    if comparisons is not None:
        write_atomically(folder / "comparisons.csv", _csv(comparisons))
    else:
        (folder / "comparisons.csv").unlink(missing_ok=True)  # of more cells, which are gone
    write_atomically(folder / "table.tex", _latex(table, page, caption))
    figures = save_figures(table, records, folder / "figures")
    text = _markdown(table, records, caption, checks, page, comparisons, figures)
    write_atomically(folder / "report.md", text)
    read = f"{len(records)} cells of {results / table.label / CELLS}, commit {commits(records)}"
    return [read, *(f"note: {note}" for note in notes), *map(str, checks)]


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def _caption(table: Table, records: Sequence[Record], notes: Sequence[str]) -> str:
    numbers = sorted({len(group) for group in by_preset(records).values()})
    seeds = " to ".join(str(number) for number in dict.fromkeys((numbers[0], numbers[-1])))
    plural = "" if numbers == [1] else "s"
    parts = [
        table.question,
        table.scale.caption_of(preset.values for preset in table.presets) if table.scale else "",
        f"Test accuracy after the last round, %: mean and 95 % interval (Student's t) over {seeds} "
        f"seed{plural}."
        if numbers != [1]
        else "Test accuracy after the last round, %, of one seed.",
        f"Note: {'; '.join(notes)}." if notes else "",
    ]
    return " ".join(part for part in parts if part)


def _latex(table: Table, page: pd.DataFrame, caption: str) -> str:
    """Return the table for booktabs, its text escaped."""
    escaped = page.rename(columns=_tex).map(lambda value: _tex(str(value)))
    styler = escaped.style.hide(axis="index")
    layout = "l" * len(table.axes or ["preset"])
    return styler.to_latex(
        hrules=True,
        column_format=(layout + "r" * len(page.columns))[: len(page.columns)],
        caption=_tex(caption),
        label=f"tab:{table.label}",
        position_float="centering",
    )


def _tex(text: str) -> str:
    for character in "&%$#_":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", r"$\pm$")


def _markdown(
    table: Table,
    records: Sequence[Record],
    caption: str,
    checks: Sequence[Check],
    page: pd.DataFrame,
    comparisons: pd.DataFrame | None,
    figures: Mapping[str, str],
) -> str:
    hours = sum(record.minutes for record in records) / 60
    origin = (
        f"{commands_that_made(table, records)}. {len(records)} cells; commit {commits(records)}; "
        f"{hardware(records)}; {hours:.1f} hours. Learning rates: {_rates(records)}."
    )
    parts = [
        f"# {table.label}",
        caption,
        pipes(page),
        *([] if comparisons is None else _comparison_part(table, comparisons)),
        *(f"![{title}](figures/{name}.png)\n\n{title}" for name, title in figures.items()),
        "## Over the rounds",
        _ON_THE_WAY,
        pipes(trajectories_frame(records)),
        "## Where it comes from",
        origin,
        "## Sanity gate",
        "\n".join(f"- {check}" for check in checks),
    ]
    return "\n\n".join(parts) + "\n"


def commands_that_made(table: Table, records: Sequence[Record]) -> str:
    """Return the commands that made the table, as they were typed where the runs noted that."""
    named = f"{table.name} --scale {table.scale.name}" if table.scale else table.name
    options = [
        f"--set {shlex.quote(tomli_w.dumps({key: value}).strip().replace(' = ', '=', 1))}"
        for key, value in departures(records).items()
    ]
    seeds = sorted({record.seed for record in records})
    if seeds[0] != records[0].preset.config({}).seed:
        options.append(f"--set seed={seeds[0]}")
    gaps = seeds != list(range(seeds[0], seeds[0] + len(seeds)))
    if len(seeds) != table.seeds and not gaps:
        options.append(f"--seeds {len(seeds)}")
    same = " ".join([named, *options])
    notes = [record.summary["sessions"][-1].get("command") for record in records]
    typed = list(dict.fromkeys(note for note in notes if note))
    some = ""
    if not typed or len(typed) > _MOST_COMMANDS or not all(notes):
        typed, presets = [f"python -m experiments run {same}"], len(by_preset(records))
        left_out = [f"{presets} of its {len(table.presets)} presets"]
        left_out = left_out if presets < len(table.presets) else []
        left_out += [f"the seeds {', '.join(map(str, seeds))}"] if gaps else []
        some = f" ({' and '.join(left_out)})" if left_out else ""
    runs = ", ".join(f"`{command}`" for command in typed)
    return f"{runs}{some}, then `collect {same}` and `report {named}`"


def _rates(records: Sequence[Record]) -> str:
    """Return which presets have which learning rate; tables are often won by it."""
    names: dict[float, list[str]] = {}
    for name, group in by_preset(records).items():
        names.setdefault(group[0].config.lr, []).append(name)
    if len(names) == 1:
        return f"{next(iter(names)):g}"
    return "; ".join(f"{lr:g} ({', '.join(names[lr])})" for lr in sorted(names))


def _comparison_part(table: Table, comparisons: pd.DataFrame) -> list[str]:
    against = table.report.get("reference")
    whom = f"with {against}" if against else "with each other"
    others = " and ".join(axis for axis in table.axes if axis not in table.compared)
    methods, units = " and ".join(table.compared), "percent points of test accuracy"
    if comparisons["seeds"].max() == 1:
        how = f"Each {methods} {whom}, in {units}. With one seed there is nothing to test by."
    else:
        how = (
            f"Paired t-tests over seeds, each {methods} {whom}; Holm's correction over the "
            f"comparisons that the table plans{others and f' in each {others}'}, run or not "
            f"(family). Differences are {units}, with their own 95 % interval. A pair *differs* "
            f"where the corrected p is below {ALPHA}. {_equivalence(table, comparisons)} "
            "What is neither *cannot be told*. Detectable is a true difference that would be told "
            "in four of five such experiments, at the spread that the seeds have, as the first of "
            "its family. "
            f"{_ONLY_SEEDS}"
        )
    return ["## Differences", how, pipes(print_comparisons(comparisons))]


def _equivalence(table: Table, comparisons: pd.DataFrame) -> str:
    margin = table.report.get("margin")
    if margin is None and EQUIVALENT in set(comparisons["verdict"]):
        return "As the table states no margin, only runs of equal weights are *equivalent*."
    if margin is None:
        return "The table states no margin within which a pair would be equivalent."
    return (
        f"It is *equivalent* where two one-sided tests, corrected likewise, put the difference "
        f"within {100 * margin:g} points, the margin that the table states."
    )
