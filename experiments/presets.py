"""Tables are folders of TOML presets; a preset holds only what differs from the defaults."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedta_app.config import KEYS, ConfigError, RunConfig, read_toml

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Preset:
    """One row of a table: `experiments/<table>/<preset>.toml`."""

    table: str
    name: str
    values: dict[str, Any]

    @property
    def label(self) -> str:
        """The name that the command line takes."""
        return f"{self.table}/{self.name}"

    def config(self, overrides: Mapping[str, Any]) -> RunConfig:
        """Return the preset's configuration; the run is named after the preset."""
        return RunConfig.from_mapping({"name": self.label, **self.values, **overrides})


def tables() -> list[str]:
    """Return the names of all tables."""
    return sorted({path.parent.name for path in FOLDER.glob("*/*.toml")})


def presets(selection: str) -> list[Preset]:
    """Return the presets of a table, or the one preset of `table/preset`.

    Raises
    ------
    ConfigError
        When there is no such table or preset; the sentence lists those that there are.
    """
    table, _, name = selection.strip("/").partition("/")
    if table not in tables():
        raise ConfigError(f"there is no table {table!r}; tables are: {', '.join(tables())}")
    paths = sorted((FOLDER / table).glob("*.toml"))
    chosen = [path for path in paths if name in ("", path.stem)]
    if not chosen:
        names = ", ".join(path.stem for path in paths)
        raise ConfigError(f"table {table!r} has no preset {name!r}; its presets are: {names}")
    return [Preset(table, path.stem, read_toml(path)) for path in chosen]


def _value(key: str, text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    wants_text = key in KEYS and KEYS[key].type is str
    return text if wants_text and not isinstance(value, str) else value  # sensitivity-labels=true


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` pairs as TOML values; a bare word is a string."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is not an override: write key=value, such as lr=0.01")
        key, text = key.strip(), text.strip()
        overrides[key] = _value(key, text)
    return overrides
