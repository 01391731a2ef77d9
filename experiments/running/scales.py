"""Scales: the tables with another model and fewer rounds, for a machine without a GPU.

`experiments/tables/<scale>.toml`:

    caption = "..."        # stands under every table and figure
    model-caption = "..."  # added to it if a preset runs the model and weights of [values]
    rounds = 0.2           # factor on all keys that count rounds
    eval-every = 2.0       # further factor on eval-every
    exclude = ["*nc50*"]   # presets that the scale leaves out
    seeds = 8              # in place of the tables'
    weights-command = "..." # makes the file that [values] names as weights
    [values]               # keys for all presets; a preset's own keys override them
    [centralized]          # keys for presets of the centralised baseline; override all others

A table that such a file does not suit, one of text for example, says all of this itself, in
`[scales.<scale>]` of its `table.toml`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.running.table_files import check_scale
from fedta_app.errors import ConfigError
from fedta_app.files import read_toml

FOLDER = Path(__file__).resolve().parents[1] / "tables"


@dataclass(frozen=True)
class Scale:
    """The changes that a scale makes to every preset."""

    name: str
    caption: str
    model_caption: str
    rounds: float
    eval_every: float
    values: dict[str, Any]
    centralized: dict[str, Any]
    exclude: Sequence[str] = ()
    seeds: int = 0  # 0: the table's
    weights_command: str = ""

    def apply(self, base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
        """Return a preset's keys at this scale, given those of [base] and its own."""
        from fedta_app.config import KEYS  # imports torch, which the list of scales need not

        keys = {**base, **self.values, **own}
        for key in keys:
            if key in KEYS and KEYS[key].scales_with_rounds and keys[key]:
                factor = self.rounds * (self.eval_every if key == "eval-every" else 1)
                keys[key] = max(KEYS[key].fewest_rounds, round(factor * keys[key]))
        if keys.get("head-refresh"):  # an interval is no length, but has to fit into it
            rounds = keys.get("num-server-rounds", KEYS["num-server-rounds"].default)
            keys["head-refresh"] = min(keys["head-refresh"], rounds)
        if keys.get("engine") == "centralized":
            keys |= self.centralized
        return keys

    def check_weights(self, named: Iterable[str]) -> None:
        """Raise ConfigError if runs with these weights need the scale's file and it is missing."""
        file = Path(str(self.values.get("weights", ""))).expanduser()
        needed = any(Path(weights).expanduser() == file for weights in named)
        if self.weights_command and needed and not file.exists():
            raise ConfigError(
                f"--scale {self.name} needs the weights {file}, which are not there: make them "
                f"with `{self.weights_command}`"
            )

    def caption_of(self, presets: Iterable[Mapping[str, Any]]) -> str:
        """Return the caption of a table with presets of these keys."""
        replaced = any(
            all(values.get(key) == self.values.get(key) for key in ("model", "weights"))
            for values in presets
        )
        return f"{self.caption} {self.model_caption}".strip() if replaced else self.caption


def scales() -> list[str]:
    """Return the names of all scales except the full one."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_scale(name: str) -> Scale:
    """Return a scale, or raise ConfigError with the names of all scales."""
    if name not in scales():
        raise ConfigError(f"there is no scale {name!r}; scales are: {', '.join(scales())}")
    path = FOLDER / f"{name}.toml"
    found = read_toml(path)
    check_scale(path, found)
    return make_scale(name, found)


def make_scale(name: str, found: Mapping[str, Any]) -> Scale:
    """Return the scale that a file, or a section of a table, describes."""
    return Scale(
        name, found.get("caption", ""), found.get("model-caption", ""), found.get("rounds", 1.0),
        found.get("eval-every", 1.0), found.get("values", {}), found.get("centralized", {}),
        found.get("exclude", []), found.get("seeds", 0),
        found.get("weights-command", ""),
    )  # fmt: skip
