"""The rows of metrics.csv, and the same figures as TensorBoard events."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from fedta_app.files import write_atomically


class Figures(TypedDict, total=False):
    """The columns of metrics.csv that an evaluation fills."""

    val_accuracy: float
    test_accuracy: float
    test_loss: float


@dataclass(frozen=True)
class Row:
    """The figures of one round; one that was not measured is None, and empty in the file.

    `seconds` is the wall time of the round without its evaluation; bytes are those of the arrays
    sent between server and clients.
    """

    round: int
    phase: str
    train_loss: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    test_loss: float | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    clients_ok: int = 0
    clients_failed: int = 0

    def measured(self, **figures: Unpack[Figures]) -> "Row":
        """Return a copy of the row with the figures of an evaluation."""
        return replace(self, **figures)


COLUMNS = tuple(entry.name for entry in fields(Row))


def write_csv(path: Path, rows: Sequence[Any], columns: Sequence[str] = COLUMNS) -> None:
    """Write rows, instances of a dataclass with these fields, to a CSV file, atomically."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomically(path, buffer.getvalue())


def best_row(rows: list[Row]) -> Row | None:
    """Return the earliest row with the highest validation accuracy, or None without any."""
    measured = [row for row in rows if row.val_accuracy is not None]
    return max(measured, key=lambda row: row.val_accuracy or 0.0, default=None)


class EventLog:
    """TensorBoard events of a run; events of an earlier session from `first_step` on are purged."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # TensorBoard takes a second to import: only a run that writes events pays for it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step)

    def add(self, step: int, row: Row) -> None:
        """Write every measured figure of a row."""
        for name, value in asdict(row).items():
            if name not in ("round", "phase") and value is not None:
                self._writer.add_scalar(f"{row.phase}/{name}", value, step)

    def close(self) -> None:
        """Flush the events to disk."""
        self._writer.close()
