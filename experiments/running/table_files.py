"""What the TOML files of tables and scales may say: other keys and values are refused."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedta_app.errors import ConfigError
from fedta_app.spelling import did_you_mean

Fits = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _are_sections(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values())


# What each key takes, in words and as a test.
_TEXT: tuple[str, Fits] = "a text", lambda value: isinstance(value, str)
_TEXTS: tuple[str, Fits] = "a list of texts", _are_texts
_SEEDS: tuple[str, Fits] = "a whole number from 1", lambda value: type(value) is int and value > 0
_FACTOR: tuple[str, Fits] = "a number above 0", lambda value: _is_number(value) and value > 0
_SECTION: tuple[str, Fits] = "a section of keys", lambda value: isinstance(value, dict)
_SECTIONS: tuple[str, Fits] = "sections of keys, one for each name", _are_sections
_AXES: tuple[str, Fits] = (
    "sections of sections: a section for each axis, in which each label has its keys",
    lambda value: isinstance(value, dict) and all(map(_are_sections, value.values())),
)
_LARGEST_MARGIN = 0.2
_MARGIN: tuple[str, Fits] = (
    f"a difference of accuracies above 0, at most {_LARGEST_MARGIN:g} (one percent point is 0.01)",
    lambda value: _is_number(value) and 0 < value <= _LARGEST_MARGIN,
)
_TABLE = {
    "question": _TEXT, "seeds": _SEEDS, "exclude": _TEXTS, "rates-from": _TEXT, "base": _SECTION,
    "axes": _AXES, "report": _SECTION, "tune": _SECTION, "scales": _SECTIONS,
}  # fmt: skip
_REPORT: dict[str, tuple[str, Fits]] = {
    "lines": _TEXT, "panels": _TEXT, "figures": _TEXTS, "reference": _TEXT,
    "compare": ("an axis, or a list of axes", lambda value: _TEXT[1](value) or _are_texts(value)),
    "margin": _MARGIN,
}  # fmt: skip
_SCALE = {
    "caption": _TEXT, "model-caption": _TEXT, "rounds": _FACTOR, "eval-every": _FACTOR,
    "exclude": _TEXTS, "seeds": _SEEDS, "weights-command": _TEXT, "values": _SECTION,
    "centralized": _SECTION,
}  # fmt: skip


def check_table(path: Path, about: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key of table.toml that is wrong, or a report that cannot be."""
    _check(path, about, _TABLE)
    report, axes = about.get("report", {}), about.get("axes", {})
    _check(f"[report] of {path}", report, _REPORT)
    compared = report.get("compare", [])
    compared = [compared] if isinstance(compared, str) else compared
    named = [(key, report[key]) for key in ("lines", "panels") if key in report]
    for key, axis in [*named, *(("compare", axis) for axis in compared)]:
        if axis not in axes:
            hint = did_you_mean(axis, axes, otherwise=f"axes are: {', '.join(axes) or 'none'}")
            raise ConfigError(f"[report] of {path}: {key} = {axis!r} is no axis of it; {hint}")
    methods = ["-".join(labels) for labels in itertools.product(*(axes[axis] for axis in compared))]
    reference = report.get("reference")
    if reference is not None and reference not in methods:
        hint = did_you_mean(reference, methods, otherwise=f"these are: {', '.join(methods)}")
        raise ConfigError(
            f"[report] of {path}: reference = {reference!r} is none of the methods that are "
            f"compared; {hint}"
        )
    for name, scale in about.get("scales", {}).items():
        check_scale(f"[scales.{name}] of {path}", scale)


def check_scale(where: Path | str, found: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key of a scale that is wrong."""
    _check(where, found, _SCALE)


def _check(
    where: Path | str, found: Mapping[str, Any], allowed: Mapping[str, tuple[str, Fits]]
) -> None:
    """Raise ConfigError for the first key that nothing reads there, or whose value is no such."""
    if unknown := sorted(set(found) - set(allowed)):
        hint = did_you_mean(unknown[0], allowed, otherwise=f"keys are: {', '.join(allowed)}")
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}; {hint}")
    for key, value in found.items():
        words, fits = allowed[key]
        if not fits(value):
            raise ConfigError(f"{where}: {key} = {value!r} is not allowed: it is {words}")
