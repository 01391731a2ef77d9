"""Figures of a table, as SVG and PNG, the same bytes from the same records."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.reporting import line_figures, map_figures
from experiments.reporting.records import Group, Record, by_preset
from experiments.running.presets import Table
from fedta_app.errors import ConfigError
from fedta_app.plotting import save_figure
from fedta_app.spelling import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Kind(NamedTuple):
    """A kind of figure: the function that draws it, None where it has nothing to, and a title.

    `spread` says what shows how far seeds differ, where there are several.
    """

    draw: "Callable[[Table, Group], Figure | None]"
    title: str
    spread: str = ""


FIGURES = {
    "curves": Kind(
        line_figures.curves,
        "Validation accuracy against rounds.",
        spread="Bands are 95 % intervals over seeds.",
    ),
    "loss": Kind(
        line_figures.losses,
        "Validation loss (cross-entropy) against rounds.",
        spread="Bands are 95 % intervals over seeds.",
    ),
    "bytes": Kind(
        line_figures.against_bytes,
        "Validation accuracy against what was moved, head and calibration included.",
    ),
    "heat-map": Kind(
        map_figures.accuracies,
        "Final test accuracy, %.",
        spread="± is the 95 % interval over seeds.",
    ),
    "cosine": Kind(
        map_figures.cosines,
        "Cosine of clients' task vectors in the last round, mean over pairs and seeds.",
    ),
    "sign-conflict": Kind(
        map_figures.sign_conflicts,
        "Share of conflicting signs of clients' task vectors in the last round.",
    ),
    "mask-density": Kind(
        map_figures.mask_density,
        "Trained share of each kind of layer, %, mean over blocks, partitions, seeds; of each part "
        "of the model where kinds are not known.",
    ),
    "mask-overlap": Kind(
        map_figures.mask_overlap,
        "Overlap of the masks of equal seeds, over a fixed sample of the weights.",
    ),
    "classes": Kind(
        map_figures.client_classes, "Images of each class that each client holds, first seed."
    ),
    "scaling": Kind(
        line_figures.scaled,
        "Validation accuracy of the start plus so much of the run's task vector.",
    ),
    "negation": Kind(
        line_figures.negated,
        "Accuracy on a client's classes (solid) and on others (dashed), validation images, after "
        "subtracting so much of its task vector; means over clients and seeds.",
    ),
    "interference": Kind(
        line_figures.interference,
        "Change of the loss when one client's update is added: on other clients' images (solid) "
        "and on its own (dashed); means over clients and seeds.",
    ),
    "drift": Kind(
        line_figures.drift,
        "Validation accuracy after a round, with the head in use (solid) and with a ridge head "
        "that is solved afresh (dashed).",
    ),
}


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


def check_figures(table: Table) -> None:
    """Raise ConfigError if the report names a kind of figure that does not exist."""
    for kind in table.report.get("figures", ()):
        if kind not in FIGURES:
            hint = did_you_mean(kind, FIGURES, otherwise=f"figures are: {', '.join(FIGURES)}")
            raise ConfigError(
                f"[report] of table {table.name}: there is no figure {kind!r}; {hint}"
            )


def save_figures(table: Table, records: Sequence[Record], folder: Path) -> dict[str, str]:
    """Save the figures that the table's report names; return their names and titles.

    What an earlier report drew and this one does not is deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved = {}
    for kind in table.report.get("figures", ["curves", "loss"]):
        for label, drawn in groups(table, records):
            figure = FIGURES[kind].draw(table, drawn)
            if figure is not None:
                name = f"{kind}-{label}" if label else kind
                for suffix in (".svg", ".png"):
                    save_figure(folder / f"{name}{suffix}", figure)
                several = any(
                    len(seeds) > 1 for lines in drawn.values() for seeds in lines.values()
                )
                title = " ".join([FIGURES[kind].title, FIGURES[kind].spread * several]).strip()
                saved[name] = f"{label}: {title}" if label else title
    for path in folder.iterdir():
        if path.suffix in (".svg", ".png") and path.stem not in saved:
            path.unlink()
    return saved
