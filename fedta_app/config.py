"""The configuration of a run: reading, checking and comparing its keys.

Keys are flat and hyphenated (`[tool.flwr.app.config]` in pyproject.toml, `--run-config`, presets);
fields carry the same names with underscores. `RunConfig.from_mapping` reads them once; from there
on the code passes plain keyword arguments. What the keys are says `fedta_app.keys`.

    python -m fedta_app.config              # the section of pyproject.toml, made from the entries
    python -m fedta_app.config --markdown   # a table of all keys for the documentation
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tomli_w

from fedta_app.combinations import check_combinations
from fedta_app.entry import DECIDES, Key, Value, markdown_table, toml_table
from fedta_app.errors import ConfigError
from fedta_app.keys import Keys
from fedta_app.spelling import near_words


@dataclass(frozen=True)
class RunConfig(Keys):
    """One run, resolved; every field is a key of `[tool.flwr.app.config]` with `_` for `-`."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "RunConfig":
        """Read hyphenated keys, check each, then their combinations.

        Raises
        ------
        ConfigError
            For an unknown key, a value of the wrong type or out of range, or keys that contradict
            each other; missing keys take their default.
        """
        for key in mapping:
            if key not in KEYS:
                raise ConfigError(unknown_key_sentence(key))
        config = cls(
            **{
                name.replace("-", "_"): KEYS[name].checked(value)  # type: ignore[arg-type]
                for name, value in sorted(mapping.items())
            }
        )
        check_combinations(config)
        return config

    def to_mapping(self) -> dict[str, Value]:
        """Return every key, hyphenated, with its resolved value."""
        return {name.replace("_", "-"): value for name, value in vars(self).items()}

    def with_values(self, **values: Value) -> "RunConfig":
        """Return a copy with some fields replaced, checked again."""
        changed = {name.replace("_", "-"): value for name, value in values.items()}
        return RunConfig.from_mapping({**self.to_mapping(), **changed})

    def values_that_decide(self, *words: str) -> dict[str, Value]:
        """Return the keys that are read here and decide any of these, with their values.

        Parameters
        ----------
        *words : str
            Words of `fedta_app.entry.DECIDES`.
        """
        deciding = keys_that_decide(*words)
        return {
            key: value
            for key, value in self.to_mapping().items()
            if key in deciding and KEYS[key].read_when.holds(self)
        }


KEYS: dict[str, Key] = {
    name: Key(name, entry.type, entry.default, **entry.metadata)  # type: ignore[arg-type]
    for entry in fields(RunConfig)
    for name in [entry.name.replace("_", "-")]
}


def keys_that_decide(*words: str) -> frozenset[str]:
    """Return the keys that decide any of these words of `fedta_app.entry.DECIDES`."""
    if unknown := set(words) - set(DECIDES):
        raise ValueError(f"{min(unknown)!r} is nothing that a key decides: {', '.join(DECIDES)}")
    return frozenset(name for name, key in KEYS.items() if key.decides & set(words))


def unknown_key_sentence(key: Any) -> str:
    """Return the sentence that refuses a key, with the one that was probably meant."""
    if not isinstance(key, str) or not key.isprintable():
        return f"{key!r} is not a key of the run configuration: keys are words, such as num-clients"
    meant = {name: key.name for key in KEYS.values() for name in (*key.synonyms, key.name)}
    typed = re.sub(r"[_ .]", "-", key.strip().lower())
    near = [typed] if typed in meant else near_words(typed, meant, most=1)
    hint = f"did you mean {meant[near[0]]}?" if near else "allowed are: " + ", ".join(KEYS)
    return f"{key} is not a key of the run configuration; {hint}"


def in_keys(sentence: str) -> str:
    """Return the sentence of a library function with keys in place of its arguments."""
    names = "|".join(name.replace("-", "_") for name in KEYS if "-" in name)
    return re.sub(rf"(?<![\w/])({names})(?![\w/])", lambda m: m[1].replace("_", "-"), sentence)


def without_folders(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values of keys in which a path says what it names, and not where on this machine."""
    kept = dict(values)
    if weights := kept.get("weights"):
        kept["weights"] = Path(str(weights)).name
    if folder := kept.get("image-folder"):  # within data-dir, or anywhere
        path = Path(str(folder))
        elsewhere = path.is_absolute() or path.parts[0].startswith("~")
        kept["image-folder"] = path.name if elsewhere else path.as_posix()
    return kept


def to_toml(config: RunConfig) -> str:
    """Return every key of the configuration as TOML."""
    return tomli_w.dumps(config.to_mapping())


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line `key: old -> new` for each key that changed and does not only say where.

    A run may be continued when there is none. Another engine is another place too, but a run with
    clients and one without are two.
    """
    keys = sorted((set(old) | set(new)) - keys_that_decide("place"))
    if "centralized" in (old.get("engine"), new.get("engine")):
        keys.append("engine")
    return [
        f"{key}: {old.get(key, 'unset')!r} -> {new.get(key, 'unset')!r}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


if __name__ == "__main__":
    make_table = markdown_table if sys.argv[1:] == ["--markdown"] else toml_table
    print(make_table(KEYS.values()), end="")
