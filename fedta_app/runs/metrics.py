"""The rows of metrics.csv."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from fedta_app.files import write_atomically


class Figures(TypedDict, total=False):
    """The columns of metrics.csv that an evaluation fills."""

    val_accuracy: float
    test_accuracy: float
    test_loss: float
    val_loss: float


@dataclass(frozen=True)
class Row:
    """The figures of one round; one that was not measured is None, and empty in the file.

    `seconds` is the wall time of the round without its evaluation; bytes are those of the arrays
    sent between server and clients. `memory_mb` is the most resident memory of the server's process
    from the row before to this one, and `gpu_memory_mb` what torch held on its GPU; clients are
    part of it where they live in that process. On Flower's engine they have their own, and
    `client_memory_mb` is the most that one of those processes took (`fedta_app.runs.memory`). The
    clients whose reply was rejected are among those that failed. `epsilon` is that of the updates
    of all rounds so far, where they get noise (`strategies.private`).
    """

    round: int
    phase: str
    train_loss: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    test_loss: float | None = None
    val_loss: float | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    memory_mb: float | None = None
    gpu_memory_mb: float | None = None
    client_memory_mb: float | None = None
    client_gpu_memory_mb: float | None = None
    clients_ok: int = 0
    clients_failed: int = 0
    clients_rejected: int = 0
    epsilon: float | None = None

    def with_peaks(self, peaks: Mapping[str, Any]) -> "Row":
        """Return a copy of the row with columns of memory: of this process, or of clients."""
        return replace(self, **peaks)


COLUMNS = tuple(entry.name for entry in fields(Row))
CLIENT_PEAKS = ("client_memory_mb", "client_gpu_memory_mb")  # sent by clients with their replies
COSTS = ("seconds", "memory_mb", "gpu_memory_mb", *CLIENT_PEAKS)  # differ when a run is repeated
# Columns that the first records lack.
ADDED = ("val_loss", *COSTS[1:], "clients_rejected", "epsilon")


def csv_text(rows: Sequence[Any], columns: Sequence[str] = COLUMNS) -> str:
    """Return rows, instances of a dataclass with these fields, as CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return buffer.getvalue()


def write_csv(path: Path, rows: Sequence[Any], columns: Sequence[str] = COLUMNS) -> None:
    """Write what `csv_text` returns, atomically."""
    write_atomically(path, csv_text(rows, columns))


def best_row(rows: list[Row]) -> Row | None:
    """Return the earliest row with the highest validation accuracy, or None without any."""
    measured = [row for row in rows if row.val_accuracy is not None]
    return max(measured, key=lambda row: row.val_accuracy or 0.0, default=None)
