"""What tuning leaves behind: the chosen values, the trials, and a figure of them."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import tomli_w

from experiments.running.presets import Table, tuned_paths
from experiments.running.tuning.study import Chosen
from fedta_app.files import read_toml, write_atomically
from fedta_app.plotting import legend_below, new_figure, save_figure, show_percent, use_logarithms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE = "#0072B2"
_HEADER = (
    "# Chosen on validation images by `python -m experiments tune`; the trials are in\n"
    "# results/tuning. Sections are presets, or patterns of them; later ones are stronger.\n\n"
)


def write_choice(table: str, scale: str, pattern: str, values: dict[str, Any]) -> Path:
    """Write the chosen values of the presets that a pattern names; return the file.

    What an earlier search of other keys found for them stays.
    """
    path, header, sections = tuned_paths(table, scale)[-1], _HEADER, {}
    if path.exists():
        lines = path.read_text().splitlines()
        comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
        header, sections = "\n".join([*comment, "", ""]), read_toml(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = sections.get(pattern, {})
    # A section that is there keeps its place: what is said after it is still stronger.
    write_atomically(path, header + tomli_w.dumps(sections | {pattern: kept | values}))
    return path


def changed_presets(before: Table, after: Table) -> list[str]:
    """Return a line `preset: key = value` for every preset whose values differ now."""
    lines = []
    for old, new in zip(before.presets, after.presets, strict=True):
        values = [f"{k} = {v}" for k, v in new.values.items() if old.values.get(k) != v]
        values += [f"{k} is no longer set" for k in old.values if k not in new.values]
        if values:
            lines.append(f"{new.name}: {', '.join(values)}")
    return lines


def save_study(folder: Path, chosen: Chosen, title: str, searched: Mapping[str, Any]) -> None:
    """Save the trials as CSV, a figure of them, and what was searched as search.toml.

    Parameters
    ----------
    searched : mapping
        What search.toml says besides the number of trials and the best one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outcome = {
        "trials": len(chosen.trials),
        "stopped-early": sum(trial["state"] == "pruned" for trial in chosen.trials),
        "best": chosen.values | {"validation-accuracy": chosen.accuracy},
    }
    if chosen.start is not None:
        outcome["start-accuracy"] = chosen.start
    tables = {key: value for key, value in searched.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in searched.items() if key not in tables}
    write_atomically(folder / "search.toml", tomli_w.dumps(plain | outcome | tables))
    frame = pd.DataFrame(chosen.trials)
    text = frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    write_atomically(folder / "trials.csv", text)
    figure = study_figure(chosen, title)
    for suffix in (".svg", ".png"):
        save_figure(folder / f"study{suffix}", figure)


def study_figure(chosen: Chosen, title: str) -> "Figure":
    """Draw a panel per searched key; trials that were stopped early are hollow."""
    keys = list(chosen.values)
    figure = new_figure(0.8 + 3.0 * len(keys), 3.0)
    axes = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    drawn = [trial for trial in chosen.trials if not math.isnan(trial["val accuracy"])]
    for axis, key in zip(axes, keys, strict=True):
        values = [trial[key] for trial in drawn]
        numbers = all(isinstance(value, int | float) for value in values)
        for state, label, face in (
            ("complete", "to the end", _BLUE), ("pruned", "stopped early", "none")
        ):  # fmt: skip
            some = [trial for trial in drawn if trial["state"] == state]
            axis.scatter(
                [trial[key] if numbers else str(trial[key]) for trial in some],
                [trial["val accuracy"] for trial in some],
                facecolor=face, edgecolor=_BLUE, s=22, label=label,
            )  # fmt: skip
        best = chosen.values[key] if numbers else str(chosen.values[key])
        axis.scatter([best], [chosen.accuracy], marker="*", s=130, color="#D55E00", label="chosen")
        if numbers and 0 < min(values) < max(values):
            use_logarithms(axis)
        axis.set_xlabel(key)
        axis.grid(alpha=0.3)
    show_percent(axes[0], "validation accuracy")
    legend_below(figure, [axes[0]], 3)
    figure.suptitle(title, fontsize="medium")
    return figure
