"""What the notebooks of results/ show: a table's page, comparisons, gate and figures.

table = Results("smoke")
table.page, table.comparisons, table.gate, table.picture("curves")
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from experiments import RESULTS
from experiments.reporting.figures import FIGURES, groups
from experiments.reporting.frames import (
    comparisons_frame,
    page_frame,
    presets_frame,
    print_comparisons,
    trajectories_frame,
)
from experiments.reporting.gate import sanity_gate
from experiments.reporting.origin import check_origin
from experiments.reporting.records import Record, RecordError, read_records
from experiments.running.presets import load_table
from fedta_app.plotting import image_bytes


@dataclass(frozen=True)
class Picture:
    """A figure as a notebook shows it."""

    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


class Results:
    """The records of a table, once they are known to be one table.

    Raises
    ------
    RecordError
        When there are none, or data, weights or settings are mixed.
    """

    def __init__(self, name: str, scale: str = "", results: Path = RESULTS) -> None:
        self.table = load_table(name, scale)
        self.records: list[Record] = read_records(self.table, results)
        check_origin(self.records, results / self.table.label)

    @property
    def page(self) -> pd.DataFrame:
        """The table as it is printed: test accuracy, %, mean and 95 % interval over seeds."""
        return page_frame(self.table, self.records)

    @property
    def presets(self) -> pd.DataFrame:
        """A row per preset, unrounded."""
        return presets_frame(self.records)

    @property
    def trajectories(self) -> pd.DataFrame:
        """Validation accuracy, %: at the start, the lowest, the mean over rounds, at the end."""
        return trajectories_frame(self.records)

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """Paired tests over seeds, under Holm's correction."""
        found = comparisons_frame(self.table, self.records)
        if found is None:
            raise RecordError(f"table {self.table.name!r} compares nothing")
        return print_comparisons(found)

    @property
    def gate(self) -> pd.DataFrame:
        """The sanity gate: what must hold, whether it does, and by how much."""
        rows = [(check.name, check.outcome, check.detail) for check in sanity_gate(self.records)]
        return pd.DataFrame(rows, columns=["check", "outcome", "detail"])

    def picture(self, kind: str, other: str = "") -> Picture:
        """Draw one of the report's figures; `other` is the label of a third axis."""
        drawn = dict(groups(self.table, self.records))
        figure = FIGURES[kind].draw(self.table, drawn[other])
        if figure is None:
            raise RecordError(f"table {self.table.name!r} has nothing to draw as {kind!r}")
        return Picture(image_bytes(figure))
