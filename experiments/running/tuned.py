"""The files that tuning writes: the chosen values, the trials, and a figure of them."""

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tomli_w

from experiments.running.presets import Table, tuned_path
from experiments.running.tune import Chosen
from fedta_app.config import read_toml
from fedta_app.files import write_atomically
from fedta_app.plotting import (
    legend_below,
    new_figure,
    save_figure,
    show_percent,
    use_logarithms,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEADER = (
    "# Chosen on validation images by `python -m experiments tune`; the trials are in\n"
    "# results/tuning. Sections are presets, or patterns of them; later ones are stronger.\n\n"
)


def write_choice(table: str, scale: str, pattern: str, values: dict[str, Any]) -> Path:
    """Write the chosen values of the presets that match a pattern; return the path."""
    path = tuned_path(table, scale)
    # An existing section keeps its place, so that later sections still override it.
    sections = (read_toml(path) if path.exists() else {}) | {pattern: values}
    write_atomically(path, _header(path) + tomli_w.dumps(sections))
    return path


def changed_presets(before: Table, after: Table) -> list[str]:
    """Return a line `preset: key = value` for every preset whose values changed."""
    lines = []
    for old, new in zip(before.presets, after.presets, strict=True):
        values = [f"{k} = {v}" for k, v in new.values.items() if old.values.get(k) != v]
        if values:
            lines.append(f"{new.name}: {', '.join(values)}")
    return lines


def _header(path: Path) -> str:
    """Return the comment at the top of the file, or the default one for a new file."""
    if not path.exists():
        return _HEADER
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return "\n".join([*lines, "", ""])


def save_study(folder: Path, chosen: Chosen, title: str) -> None:
    """Save the trials as CSV, and as a figure of each value against validation accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(chosen.trials)
    text = frame.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    write_atomically(folder / "trials.csv", text)
    figure = study_figure(chosen, title)
    for suffix in (".svg", ".png"):
        save_figure(folder / f"study{suffix}", figure)


def study_figure(chosen: Chosen, title: str) -> "Figure":
    """Return a figure with a panel per searched key; pruned trials are hollow."""
    keys = list(chosen.values)
    figure = new_figure(0.8 + 3.0 * len(keys), 3.0)
    axes = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    drawn = [trial for trial in chosen.trials if not math.isnan(trial["val accuracy"])]
    for axis, key in zip(axes, keys, strict=True):
        numbers = all(isinstance(trial[key], int | float) for trial in drawn)
        for state, face in (("complete", "#0072B2"), ("pruned", "none")):
            some = [trial for trial in drawn if trial["state"] == state]
            axis.scatter(
                [trial[key] if numbers else str(trial[key]) for trial in some],
                [trial["val accuracy"] for trial in some],
                facecolor=face, edgecolor="#0072B2", s=22,
                label={"complete": "to the end", "pruned": "stopped early"}[state],
            )  # fmt: skip
        best = chosen.values[key] if numbers else str(chosen.values[key])
        axis.scatter([best], [chosen.accuracy], marker="*", s=130, color="#D55E00", label="chosen")
        if (
            numbers
            and np.ptp([trial[key] for trial in drawn]) > 0
            and min(trial[key] for trial in drawn) > 0
        ):
            use_logarithms(axis)
        axis.set_xlabel(key)
        axis.grid(alpha=0.3)
    show_percent(axes[0], "validation accuracy")
    legend_below(figure, [axes[0]], 3)
    figure.suptitle(title, fontsize="medium")
    return figure
