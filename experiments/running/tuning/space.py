"""What a search tries: a list of values, or a range, of each key."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedta_app.config import KEYS, unknown_key_sentence
from fedta_app.errors import ConfigError

if TYPE_CHECKING:
    import optuna

Space = Mapping[str, Any]
DEFAULT_SPACE: Space = {"lr": {"low": 1e-3, "high": 0.3}}


def check_space(space: Space) -> None:
    """Refuse, in one sentence, a space that cannot be searched.

    Raises
    ------
    ConfigError
        For what is no key, decides nothing of the result, or has a value that is not allowed.
    """
    for key, choice in space.items():
        if key not in KEYS:
            raise ConfigError(f"[tune] {unknown_key_sentence(key)}")
        if "result" not in KEYS[key].decides:
            raise ConfigError(f"[tune] {key} is not searched: it decides nothing of the result")
        if isinstance(choice, list) and choice:
            for value in choice:
                KEYS[key].checked(value)
        else:
            _check_range(key, choice)


def _check_range(key: str, choice: Any) -> None:
    """Refuse what is no range of positive numbers."""
    ends = choice if isinstance(choice, dict) else {}
    if set(ends) != {"low", "high"}:
        raise ConfigError(
            f"[tune] {key} = {choice!r} is not allowed: it is a list of values, or "
            "{ low = ..., high = ... }"
        )
    if KEYS[key].kind is not float:
        raise ConfigError(f"[tune] {key} = {choice!r} is not allowed: {key} takes a list of values")
    low, high = (KEYS[key].checked(ends[end]) for end in ("low", "high"))
    if not 0 < float(low) < float(high):
        raise ConfigError(
            f"[tune] {key} = {choice!r} is not allowed: low is above 0 and below high, because "
            "values between them are drawn on a logarithmic scale"
        )


def grid(space: Space) -> list[dict[str, Any]]:
    """Return every point of a space of lists; nothing where a key has a range.

    Examples
    --------
    >>> grid({"lr": [0.1, 0.2], "momentum": [0.9]})
    [{'lr': 0.1, 'momentum': 0.9}, {'lr': 0.2, 'momentum': 0.9}]
    """
    if not all(isinstance(choice, list) for choice in space.values()):
        return []
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*space.values())]


def suggest(trial: "optuna.Trial", space: Space) -> dict[str, Any]:
    """Return the values that a new trial shall have."""
    for key, choice in space.items():
        if isinstance(choice, list):
            trial.suggest_categorical(key, choice)
        else:
            trial.suggest_float(key, choice["low"], choice["high"], log=True)
    return values_of(trial.params, space)


def values_of(parameters: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return the values that a trial ran with, rounded to three significant digits."""
    return {
        key: parameters[key] if isinstance(choice, list) else float(f"{parameters[key]:.3g}")
        for key, choice in space.items()
    }
