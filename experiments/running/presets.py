"""Tables of presets: a preset is a row, and holds the keys that differ from the defaults.

`experiments/tables/<table>/` holds one TOML file per preset, or a `table.toml` whose axes span the
presets:

    question = "..."                 # the question that the table answers; its caption
    seeds = 3                        # number of seeds per preset, unless --seeds is given
    rates-from = "python -m ..."     # finds the learning rates; a run without them warns
    exclude = ["nc1-*"]              # presets to leave out of the product of the axes
    [base]                           # keys that all presets share
    [axes.partition]                 # a preset's name joins its labels on the axes: iid-j4
    iid = { partition = "iid" }
    [axes.steps]
    j4 = { local-steps = 4 }
    [report]
    lines = "partition"              # and panels: axes of the figures
    figures = ["curves", "heat-map"]
    compare = "partition"            # the axis, or a list of axes, whose labels are the methods
    reference = "iid"                # the method that all others are tested against
    [tune]                           # the keys that experiments.running.tuning searches
    [scales.small]                   # that scale, in place of the one in small.toml

`tuned.toml` beside them holds the values that `fedta tune` chose, by preset. Where fedta is
installed without its checkout, further choices are kept in `results/tuning/<table>/tuned.toml` of
the working directory, and are stronger.
"""

import fnmatch
import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import INSTALLED, RESULTS
from experiments.running.scales import FOLDER, Scale, load_scale, make_scale, scales
from experiments.running.table_files import check_table
from fedta_app.errors import ConfigError
from fedta_app.files import read_toml
from fedta_app.spelling import did_you_mean

if TYPE_CHECKING:
    from fedta_app.config import RunConfig

TABLE_FILE = "table.toml"


@dataclass(frozen=True)
class Preset:
    """One row of a table.

    Attributes
    ----------
    table : str
        The table's name, its scale included: `heterogeneity-small`.
    coordinates : dict of str to str
        The preset's label on each axis of the table; empty if the preset has its own file.
    tuned : frozenset of str
        The keys whose values are from `tuned.toml`.
    """

    table: str
    name: str
    values: dict[str, Any]
    coordinates: dict[str, str] = field(default_factory=dict)
    tuned: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """The name of its runs."""
        return f"{self.table}/{self.name}"

    def config(self, overrides: Mapping[str, Any]) -> "RunConfig":
        """Return the preset's configuration; the run is named after the preset."""
        from fedta_app.config import RunConfig  # imports torch, which the list of presets need not

        return RunConfig.from_mapping({"name": self.label, **self.values, **overrides})


@dataclass(frozen=True)
class Table:
    """A question and the presets that answer it.

    Attributes
    ----------
    axes : dict of str to list of str
        The labels of each axis, in the order of the file; empty for a folder of presets.
    report : dict
        The settings of `experiments.reporting.report`.
    tune : dict
        The keys that `experiments.running.tuning` searches.
    rates_from : str
        The command that finds the learning rates which the table needs; empty if it needs none.
    """

    name: str
    presets: list[Preset]
    question: str = ""
    seeds: int = 1
    axes: dict[str, list[str]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    scale: Scale | None = None
    rates_from: str = ""

    @property
    def label(self) -> str:
        """The name of the table's folder of results, with the scale unless that is full."""
        return f"{self.name}-{self.scale.name}" if self.scale else self.name

    @property
    def compared(self) -> list[str]:
        """The axes whose labels, joined, are the methods that the report compares."""
        named = self.report.get("compare", [])
        return [named] if isinstance(named, str) else named


def tables() -> list[str]:
    """Return the names of all tables."""
    return sorted({path.parent.name for path in FOLDER.glob("*/*.toml")})


def tuned_paths(table: str, scale: str) -> list[Path]:
    """Return the files with the tuned values of a table at a scale.

    Later ones are stronger, and `tune` writes into the last. In an installed package the files of
    the tables are only read.
    """
    folders = [FOLDER, RESULTS / "tuning"] if INSTALLED else [FOLDER]
    return [
        folder / table / (f"tuned-{scale}.toml" if scale else "tuned.toml") for folder in folders
    ]


def load_table(name: str, scale: str = "") -> Table:
    """Return a table, at full scale or at the named one.

    Raises
    ------
    ConfigError
        When there is no such table or scale, or its file is wrong; the message says what to do.
    """
    if name not in tables():
        hint = did_you_mean(name, tables(), otherwise=f"tables are: {', '.join(tables())}")
        raise ConfigError(f"there is no table {name!r}; {hint}")
    path = FOLDER / name / TABLE_FILE
    about = read_toml(path) if path.exists() else {}
    check_table(path, about)
    files = _files(name)
    if files and about.get("axes"):
        raise ConfigError(
            f"{FOLDER / name / files[0][0]}.toml is a preset beside {TABLE_FILE} with axes, which "
            "make all presets of a table: add it to an axis, or put it into a table of its own"
        )
    own_scales: dict[str, dict[str, Any]] = about.get("scales", {})
    if unknown := set(own_scales) - set(scales()):
        raise ConfigError(
            f"{path} describes a scale {min(unknown)!r}; scales are: {', '.join(scales())}"
        )
    chosen = load_scale(scale) if scale else None
    if scale in own_scales:
        chosen = make_scale(scale, own_scales[scale])
    left_out = chosen.exclude if chosen else []
    rows = [row for row in [*_grid(about), *files] if not _matches(row[0], left_out)]
    tuned = [tuned for tuned in tuned_paths(name, scale) if tuned.exists()]
    choices = [_choices(tuned, [row[0] for row in rows]) for tuned in tuned]
    label = f"{name}-{scale}" if scale else name
    presets = []
    for preset, base, own, coordinates in rows:
        values = chosen.apply(base, own) if chosen else {**base, **own}
        found: dict[str, Any] = {}
        for sections in choices:
            found |= _tuned(sections, preset)
        presets.append(Preset(label, preset, values | found, coordinates, frozenset(found)))
    return Table(
        name, presets, about.get("question", ""),
        (chosen.seeds if chosen else 0) or about.get("seeds", 1),
        {axis: list(values) for axis, values in about.get("axes", {}).items()},
        about.get("report", {}), about.get("tune", {}), chosen, about.get("rates-from", ""),
    )  # fmt: skip


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


# Name of a preset, keys of [base], the preset's own keys, coordinates.
Row = tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]


def _grid(about: Mapping[str, Any]) -> list[Row]:
    """Return the points of the product of the axes, except those that are excluded."""
    axes: dict[str, dict[str, dict[str, Any]]] = about.get("axes", {})
    rows: list[Row] = []
    for labels in itertools.product(*axes.values()) if axes else ():
        name = "-".join(filter(None, labels))
        if _matches(name, about.get("exclude", ())):
            continue
        coordinates = dict(zip(axes, labels, strict=True))
        own: dict[str, Any] = {}
        for axis, label in coordinates.items():
            own |= axes[axis][label]
        rows.append((name, about.get("base", {}), own, coordinates))
    return rows


def _files(table: str) -> list[Row]:
    """Return the presets of the folder that have their own file."""
    paths = sorted((FOLDER / table).glob("*.toml"))
    return [
        (path.stem, read_toml(path), {}, {})
        for path in paths
        if path.name != TABLE_FILE and not path.stem.startswith("tuned")
    ]


def _choices(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Read tuned values, by patterns of the presets that have these names."""
    choices = read_toml(path)
    for pattern, section in choices.items():
        if not isinstance(section, dict):
            raise ConfigError(
                f"{path}: {pattern} = {section!r} is not allowed outside of a section: sections "
                "are presets, or patterns of them"
            )
        check_pattern(pattern, names, str(path))
    return choices


def check_pattern(pattern: str, names: Sequence[str], where: str) -> None:
    """Raise ConfigError if the pattern matches none of the presets."""
    if not fnmatch.filter(names, pattern):
        hint = did_you_mean(pattern, names, otherwise=f"presets are: {', '.join(names)}")
        raise ConfigError(f"{where}: {pattern!r} matches no preset of the table; {hint}")


def _tuned(choices: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Return the tuned values of a preset; later sections that match it override earlier ones."""
    values: dict[str, Any] = {}
    for pattern, section in choices.items():
        if fnmatch.fnmatchcase(preset, pattern):
            values |= section
    return values


def select(selection: str, scale: str = "") -> tuple[Table, list[Preset]]:
    """Return a table and its presets, or those that match `table/pattern` (with `*`).

    Raises
    ------
    ConfigError
        When there is no such table or preset; the message has those that are spelled alike, or
        else all.
    """
    name, _, pattern = selection.strip("/").partition("/")
    table = load_table(name, scale)
    chosen = [p for p in table.presets if not pattern or fnmatch.fnmatchcase(p.name, pattern)]
    if not chosen:
        names = [preset.name for preset in table.presets]
        hint = did_you_mean(pattern, names, otherwise=f"its presets are: {', '.join(names)}")
        raise ConfigError(f"table {name!r} has no preset {pattern!r}; {hint}")
    return table, chosen


def _value(key: str, text: str) -> Any:
    from fedta_app.config import KEYS  # as in Preset.config

    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # no TOML, or an integer of more digits than Python reads
        return text
    wants_text = key in KEYS and KEYS[key].kind is str
    return (
        text if wants_text and not isinstance(value, str) else value
    )  # as sensitivity-labels=true


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` pairs as TOML values; a bare word is a string."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is not an override: write key=value, such as lr=0.01")
        key, text = key.strip(), text.strip()
        if key in overrides:
            raise ConfigError(f"{key} is given twice, as {overrides[key]!r} and {text}: give one")
        overrides[key] = _value(key, text)
    return overrides
