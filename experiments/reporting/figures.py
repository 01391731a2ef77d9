"""Figures of a table, as SVG and PNG, the same bytes from the same records."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.reporting.line_figures import against_bytes, curves, negated, scaled
from experiments.reporting.map_figures import (
    client_classes,
    cosines,
    heat_map,
    mask_density,
    mask_overlap,
    sign_conflicts,
)
from experiments.reporting.records import Group, Record, RecordError, by_preset
from experiments.running.presets import Table

FIGURES: dict[str, Callable[[Table, Group], Figure | None]] = {
    "curves": curves,
    "bytes": against_bytes,
    "heat-map": heat_map,
    "cosine": cosines,
    "sign-conflict": sign_conflicts,
    "mask-density": mask_density,
    "mask-overlap": mask_overlap,
    "classes": client_classes,
    "scaling": scaled,
    "negation": negated,
}


def save_figure(path: Path, figure: Figure) -> None:
    """Save a figure as `path`.svg and `path`.png, without dates or versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with mpl.rc_context({"svg.hashsalt": "fedta"}):
        figure.savefig(f"{path}.svg", format="svg", metadata={"Date": None, "Creator": None})
    with Path(f"{path}.png").open("wb") as stream:
        write_png(figure, stream)


def write_png(figure: Figure, stream: IO[bytes]) -> None:
    """Write a figure as PNG, without versions."""
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})


def groups(table: Table, records: Sequence[Record]) -> Iterator[tuple[str, Group]]:
    """Yield, for each label of the axes that are neither lines nor panels, what to draw."""
    lines, panels = table.report.get("lines"), table.report.get("panels")
    others = [axis for axis in table.axes if axis not in (lines, panels)]
    found: dict[str, Group] = {}
    for group in by_preset(records).values():
        preset = group[0].preset
        name = "-".join(preset.coordinates[axis] for axis in others)
        panel = preset.coordinates.get(panels or "", "")
        line = preset.coordinates.get(lines or "", preset.name)
        found.setdefault(name, {}).setdefault(panel, {})[line] = group
    for name, drawn in found.items():
        order = table.axes.get(panels or "", list(drawn))
        yield name, {panel: drawn[panel] for panel in order if panel in drawn}


def save_figures(table: Table, records: Sequence[Record], folder: Path) -> list[Path]:
    """Save the figures that the table's report names; return their paths, without suffix.

    Raises
    ------
    RecordError
        When the report names a figure that there is not.
    """
    saved = []
    for kind in table.report.get("figures", ["curves"]):
        if kind not in FIGURES:
            raise RecordError(
                f"table {table.name!r} has a figure {kind!r}; figures are: {', '.join(FIGURES)}"
            )
        for name, drawn in groups(table, records):
            figure = FIGURES[kind](table, drawn)
            if figure is not None:
                path = folder / (f"{kind}-{name}" if name else kind)
                save_figure(path, figure)
                saved.append(path)
    return saved
