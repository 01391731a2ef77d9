"""What the TOML files of tables and scales may say: a key that nothing reads is refused."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fedta_app.errors import ConfigError
from fedta_app.spelling import did_you_mean

_TABLE = (
    "question", "seeds", "exclude", "rates-from", "base", "axes", "report", "tune", "scales"
)  # fmt: skip
_REPORT = ("lines", "panels", "figures", "compare", "reference", "margin")
_SCALE = (
    "caption", "model-caption", "rounds", "eval-every", "exclude", "seeds", "weights-command",
    "values", "centralized",
)  # fmt: skip
_LARGEST_MARGIN = 0.2


def check_table(path: Path, about: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key of table.toml that nothing reads, or a report that cannot be."""
    _only(path, about, _TABLE)
    report, axes = about.get("report", {}), about.get("axes", {})
    _only(f"[report] of {path}", report, _REPORT)
    for key in ("lines", "panels"):
        if (axis := report.get(key)) is not None and axis not in axes:
            hint = did_you_mean(str(axis), axes, otherwise=f"axes are: {', '.join(axes) or 'none'}")
            raise ConfigError(f"[report] of {path}: {key} = {axis!r} is no axis of it; {hint}")
    margin = report.get("margin", _LARGEST_MARGIN)
    number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if not (number and 0 < margin <= _LARGEST_MARGIN):
        raise ConfigError(
            f"[report] of {path}: margin = {margin!r} is not allowed: it is a difference of "
            f"accuracies above 0, at most {_LARGEST_MARGIN:g}, and 0.01 is one percent point"
        )
    for name, scale in about.get("scales", {}).items():
        check_scale(f"[scales.{name}] of {path}", scale)


def check_scale(where: Path | str, found: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key of a scale that nothing reads."""
    _only(where, found, _SCALE)


def _only(where: Path | str, found: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Raise ConfigError for the first key that is not allowed there."""
    if unknown := sorted(set(found) - set(allowed)):
        hint = did_you_mean(unknown[0], allowed, otherwise=f"keys are: {', '.join(allowed)}")
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}; {hint}")
