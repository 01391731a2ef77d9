"""Where the cells of a table come from: a table of mixed data, weights or settings is refused.

Code is compared by what a run uses of it (`experiments.reporting.versions`), so commits that change
only documents, tests, the runner or another rule are the same code. The caption says which cells
are of another version, and which were run with code that is not committed. Where several versions
compute the same, `results/<table>/origin.toml` says why, and the caption repeats it:

    mixed-code = "the later version only prints more"
    commits = ["1ba75d7", "d079585"]    # that it is about; without them, any

Weights are compared by the sha256 of their file. Where files differ in what they say of themselves,
and not in a tensor, the same page says so:

    mixed-weights = "a later file also names the size of its patches"
    same-weights = ["439c29ee...", "32e1b889..."]   # whole sha256, at least two

What else a reader has to know of the cells is a sentence of its own:

    note = "their rates are too high: see results/README.md"
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reporting.records import Record, RecordError
from experiments.reporting.versions import (
    Code,
    cells_by_version,
    code_versions,
    codes_of,
    commit_name,
    some,
)
from experiments.running.cells import deciding_keys, identity
from fedta_app.data.folder import FOLDER
from fedta_app.entry import Value
from fedta_app.errors import ConfigError
from fedta_app.files import read_toml

ORIGIN = "origin.toml"


def check_origin(records: Sequence[Record], folder: Path) -> list[str]:
    """Return what the caption says of the cells' origin.

    Parameters
    ----------
    folder : Path
        Of the table's results, where origin.toml may be.

    Raises
    ------
    RecordError
        When data, weights or settings are mixed.
    """
    _one_name_each(records)
    excuse = _read_origin(folder / ORIGIN)
    # Without a reason, which the caption repeats, other files are other weights.
    same: list[str] = excuse.get("same-weights", []) if "mixed-weights" in excuse else []

    def weights(record: Record) -> tuple[str, str]:
        group, sha256 = _weights(record)
        return group, same[0] if sha256 in same else sha256

    for what, facts in (("data sets", _data), ("weights", _kind), ("weights", weights)):
        _one(records, what, facts)
    notes = [f"{key} = {value!r}, not the presets'" for key, value in departures(records).items()]
    notes += [excuse["note"]] if "note" in excuse else []
    notes += _code_notes(records, excuse)
    if len({_weights(record)[1] for record in records} & set(same)) > 1:
        notes.append(f"cells began from several files of weights: {excuse['mixed-weights']}")
    for what, found in (("torch", _torches(records)), ("devices", _devices(records))):
        if len(found) > 1:
            notes.append(f"cells of several {what}: {' and '.join(found)}")
    if failed := {record.label: n for record in records if (n := record.failed_replies)}:
        worst = max(failed, key=lambda label: failed[label])
        notes.append(
            f"{sum(failed.values())} replies of failed clients are missing, in {len(failed)} of "
            f"{len(records)} cells; most in {worst}"
        )
    return notes


def _read_origin(path: Path) -> dict[str, Any]:
    """Return what origin.toml says, {} where there is none.

    Raises
    ------
    RecordError
        When it has another key than those above, or a value of another kind: what it does not
        excuse would look excused.
    """
    found = read_toml(path) if path.exists() else {}
    for key, value in found.items():
        if key in ("mixed-code", "mixed-weights", "note"):
            right, kind = isinstance(value, str) and bool(value.strip()), "a sentence"
        elif key in ("commits", "same-weights"):
            least = 1 if key == "commits" else 2
            right = isinstance(value, list) and len(value) >= least
            right = right and all(isinstance(name, str) and name.strip() for name in value)
            kind = f"a list of texts, at least {least}"
        else:
            raise RecordError(
                f"{path} has an unknown key {key!r}: keys are mixed-code, commits, mixed-weights, "
                "same-weights and note"
            )
        if not right:
            raise RecordError(f"{path}: {key} = {value!r} is not allowed: {key} is {kind}")
    return found


def _one_name_each(records: Sequence[Record]) -> None:
    """Refuse one experiment under two names, as when an axis of the table was overridden."""
    seen: dict[str, Record] = {}
    for record in records:
        other = seen.setdefault(identity(record.config), record)
        if other is not record:
            raise RecordError(f"{other.label} and {record.label} ran the same configuration")


def _one(records: Sequence[Record], what: str, facts: Callable[[Record], tuple[str, str]]) -> None:
    """Refuse records that agree on the first of the facts and not on the second."""
    seen: dict[str, tuple[str, Record]] = {}
    for record in records:
        group, fact = facts(record)
        first, other = seen.setdefault(group, (fact, record))
        if first != fact:
            raise RecordError(
                f"{other.label} and {record.label} have different {what} ({first[:12]} and "
                f"{fact[:12]}): a table is one experiment, so run one of them again"
            )


def _data(record: Record) -> tuple[str, str]:
    config = record.config
    sha256 = str(record.summary["identity"]["data-sha256"])
    # The images of a folder have the size that they were decoded to, which may be the model's own.
    own = f"{config.image_folder} {config.image_size or config.model} " * (config.dataset == FOLDER)
    seed = record.seed if config.val_seed < 0 else config.val_seed
    # Of text, the clients' own parts are the data, and the seed draws whose they are.
    natural = config.partition == "natural" and config.engine != "centralized"
    own += f"{config.num_clients} {record.seed} " * natural
    return f"{config.dataset} {own}{config.val_size} {seed}", sha256


def _kind(record: Record) -> tuple[str, str]:
    return record.config.model, str(record.summary["weights"]["kind"])


def _weights(record: Record) -> tuple[str, str]:
    config = record.config
    # Random weights depend on the seed, and hold a head where that is trained.
    random = record.summary["weights"]["kind"] == "random"
    draw = f"{record.seed} {config.head == 'random'}" if random else ""
    sha256 = str(record.summary["identity"]["weights-file-sha256"])
    return f"{config.model} {config.image_size} {draw}", sha256


def _code_notes(records: Sequence[Record], excuse: Mapping[str, Any]) -> list[str]:
    """Return notes on code that is not committed, and on cells of several versions of the code."""
    notes = []
    changed = {record.label for record in records if any(c.get("changed") for c in _codes(record))}
    if changed:
        notes.append(
            f"{len(changed)} of {len(records)} cells were run with code that is not committed, as "
            f"{min(changed)}, and cannot be repeated from a commit"
        )
    versions = code_versions(code for record in records for code in _codes(record))
    if len(versions) == 1:
        return notes
    cells = cells_by_version(versions, [(record.label, record.summary) for record in records])
    said, named = [], excuse.get("commits")
    for version, labels in zip(versions, cells, strict=True):
        # Of one version, what holds for one commit holds for all.
        known = named is None or any(c.startswith(tuple(named)) for c in version.commits)
        if "mixed-code" not in excuse or not known:
            said.append(f"{version.name} ran {some(labels)}")
    begin = f"cells of {len(versions)} versions of the code"
    if "mixed-code" in excuse:
        notes.append(f"{begin}: {excuse['mixed-code']}")
        begin = "that says nothing of other versions among them"
    if said:
        notes.append(f"{begin}, so that a difference may be one of code: {', '.join(said)}")
    return notes


def _codes(record: Record) -> list[Code]:
    return codes_of(record.summary)


def departures(records: Sequence[Record]) -> dict[str, Value]:
    """Return the keys, and their values, in which cells differ from their presets.

    Raises
    ------
    RecordError
        When they do so by different values.
    """
    departed: dict[str, tuple[Record, Value]] = {}
    for record in records:
        for key, value in _departure(record).items():
            departed.setdefault(key, (record, value))
    for key, (odd, value) in sorted(departed.items()):
        for record in records:
            other = deciding_keys(record.config).get(key, value)  # that, where nothing reads it
            if other != value:
                raise RecordError(
                    f"{odd.label} ran with {key} = {value!r}, which is not what its preset says, "
                    f"and {record.label} with {other!r}: run one of them again"
                )
    return {key: value for key, (_, value) in sorted(departed.items())}


def _departure(record: Record) -> dict[str, Any]:
    """Return the keys, and their values, in which a record differs from its preset."""
    try:
        config = record.preset.config({"seed": record.seed})
    except ConfigError as error:
        raise RecordError(f"the preset {record.preset.label} is not valid: {error}") from error
    # Also of a key that the preset does not read, but the run does: it has another data set, say.
    wanted = config.to_mapping() | deciding_keys(config)
    return {
        key: value
        for key, value in deciding_keys(record.config).items()
        if key != "weights" and value != wanted[key]  # `_weights` compares contents
    }


def hardware(records: Sequence[Record]) -> str:
    """Return the devices that the cells ran on, in which precision, and with which PyTorch."""
    return "; ".join([*_devices(records), *(f"torch {name}" for name in _torches(records))])


def _devices(records: Sequence[Record]) -> list[str]:
    found = {
        f"{record.summary['device']}, {record.summary.get('precision', record.config.precision)}"
        for record in records
    }
    return sorted(found)


def _torches(records: Sequence[Record]) -> list[str]:
    return sorted({record.summary.get("versions", {}).get("torch", "?") for record in records})


def commits(records: Sequence[Record]) -> str:
    """Return the commits that the cells ran at, shortened."""
    found = {commit_name(code) for record in records for code in _codes(record)}
    return ", ".join(sorted(found))
