"""What a run writes for people and reports, and the checkpoint that decides where they disagree.

metrics.csv and summary.json follow from the rows of a checkpoint. They can be damaged or edited;
the checkpoint has a hash. summary.json has one too, of all that it says besides (`sha256`), which
files of earlier releases lack.
"""

import csv
import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from fedta_app.errors import CheckpointError
from fedta_app.files import write_atomically
from fedta_app.hashed_files import json_sha256
from fedta_app.runs.checkpoint import newest_values
from fedta_app.runs.metrics import ADDED, COLUMNS, Row, best_row, csv_text

METRICS, SUMMARY = "metrics.csv", "summary.json"
_Kind = TypeVar("_Kind")


def stored_rows(state: Mapping[str, Any], step: int | None = None) -> list[Row]:
    """Return the rows that a checkpoint holds.

    Parameters
    ----------
    step : int, optional
        How many there have to be.

    Raises
    ------
    CheckpointError
        When they are not rows, or not so many.
    """
    needed = set(COLUMNS) - set(ADDED)
    rows = [checked(Row, row, needed) for row in _list(state, "rows")]
    if step is not None and len(rows) != step:
        raise CheckpointError(f"the checkpoint of step {step} holds {len(rows)} rows")
    return rows


def stored_sessions(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a checkpoint says of earlier sessions; raise CheckpointError like the above."""
    sessions = _list(state, "sessions")
    if all(isinstance(e, dict) and isinstance(e.get("seconds"), int | float) for e in sessions):
        return sessions
    raise CheckpointError("the sessions in the checkpoint are not what a run writes there")


def _list(state: Mapping[str, Any], name: str) -> list[Any]:
    if isinstance(found := state.get(name), list):
        return found
    raise CheckpointError(f"the checkpoint has no list of {name}")


def checked(kind: type[_Kind], values: Any, needed: Collection[str] = ()) -> _Kind:
    """Return an instance of a dataclass of numbers and texts from the values in a checkpoint.

    Parameters
    ----------
    needed : collection of str
        Fields that may not be missing, although they have a default.

    Raises
    ------
    CheckpointError
        When a value is missing, unknown or of another type.
    """
    types = {entry.name: entry.type for entry in fields(kind)}  # type: ignore[arg-type]
    name = kind.__name__
    if not isinstance(values, dict) or not set(needed) <= values.keys() <= types.keys():
        raise CheckpointError(f"the checkpoint has a {name} that is none: {str(values)[:80]}")
    for key, value in values.items():
        wanted: Any = types[key]
        number = float in getattr(wanted, "__args__", (wanted,)) and isinstance(value, int)
        if isinstance(value, bool) or not (isinstance(value, wanted) or number):
            raise CheckpointError(f"the checkpoint has a {name} whose {key} is {str(value)[:80]!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise CheckpointError(f"the checkpoint has a {name} that is none ({error})") from error


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what summary.json says of the rows, as values of JSON."""
    best = best_row(list(rows))
    found = {
        "final": asdict(rows[-1]) if rows else None,
        "best-by-validation": asdict(best) if best else None,
        "bytes-down": sum(row.bytes_down for row in rows),
        "bytes-up": sum(row.bytes_up for row in rows),
    }
    return {name: finite(value) for name, value in found.items()}


def disagreement(folder: Path, state: Mapping[str, Any] | None = None) -> str:
    """Return how the records in a run directory differ from its checkpoint; empty if they agree.

    Parameters
    ----------
    state : mapping, optional
        What the newest checkpoint holds; by default it is read. Without a checkpoint the records
        are all there is, and have to be readable.

    Raises
    ------
    CheckpointError
        When the checkpoint is damaged, or holds no rows.
    """
    found, summary = read_rows(folder), read_summary(folder)
    if not found or not summary:
        return f"{folder / (SUMMARY if found else METRICS)} is missing or damaged"
    if state is None and (state := newest_values(folder / "checkpoint")) is None:
        return ""
    rows = stored_rows(state)
    written = tuple(csv.DictReader(io.StringIO(csv_text(rows))))
    if len(found) != len(written) or not all(map(_within, found, written)):
        return f"{folder / METRICS} does not hold the rows of the checkpoint"
    held = {**figures(rows), "identity": state.get("identity")}
    held["initial-weights-sha256"] = state.get("initial-weights-sha256")
    for name, value in held.items():
        same = summary.get(name) == value
        if isinstance(value, dict) and isinstance(there := summary.get(name), dict):
            same = _within(there, value)
        if not same:
            return f"{folder / SUMMARY} does not say what the checkpoint does of {name!r}"
    return ""


def _within(part: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Tell whether a mapping, which an earlier release may have written, is part of another."""
    return all(name in whole and whole[name] == value for name, value in part.items())


def read_rows(folder: Path) -> tuple[dict[str, str], ...]:
    """Return the rows of metrics.csv, or none if it is missing or damaged."""
    try:
        with (folder / METRICS).open() as stream:
            rows = tuple(csv.DictReader(stream))
        for row in rows:
            if None in row.values() or None in row:
                return ()  # the row was cut off, or has more entries than there are columns
            for name in COLUMNS:
                if name in row or name not in ADDED:
                    _ = row[name] if name == "phase" else float(row[name] or 0)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return ()
    return rows


def read_summary(folder: Path) -> dict[str, Any]:
    """Return summary.json, or an empty dictionary if it is missing or damaged."""
    try:
        summary = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):
        return {}
    return summary if is_summary(summary) else {}


def is_summary(summary: Any) -> bool:
    """Tell whether this is what a run writes into summary.json, its hash included."""
    if not isinstance(summary, dict):
        return False
    sessions, final = summary.get("sessions", []), summary.get("final")
    if not isinstance(sessions, list) or not all(isinstance(entry, dict) for entry in sessions):
        return False
    if not isinstance(final, dict | None) or not isinstance(summary.get("status", ""), str):
        return False
    return summary.get("sha256") in (None, _digest(summary))


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json atomically, with its hash; NaN and infinity become None."""
    stored = json.loads(json.dumps(finite(dict(summary)), allow_nan=False))  # as it is read again
    stored["sha256"] = _digest(stored)
    write_atomically(folder / SUMMARY, json.dumps(stored, indent=1) + "\n")


def _digest(summary: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in summary.items() if name != "sha256"}
    return json_sha256(rest)


def finite(value: Any) -> Any:
    """Return the value with None for NaN and infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
