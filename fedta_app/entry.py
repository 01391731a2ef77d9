"""What the entry of a configuration key says, and the tables that are made from all entries.

`fedta_app.keys` declares each key once, with one of the functions below. Whatever else the code has
to know about keys is asked of their entries, so that a new key needs no other list.
"""

import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tomli_w

from fedta_app.errors import ConfigError
from fedta_app.spelling import did_you_mean

Value = bool | int | float | str
_LARGEST = 3.4e38  # tensors are float32, and hold no larger factor
_LONGEST = 60  # characters of a value that a message quotes

# What a key can decide. Each key decides exactly one of the first four.
DECIDES = {
    "result": "what is computed: with another value a run is another experiment",
    "rounding": "only the last bits of sums, as another machine does: the experiment is the same, "
    "but a run that is continued keeps the value, because it promises equal bits",
    "name": "what the run is called",
    "place": "where a run works, and for how long: it may change when a run is continued",
    "time": "how long a round, an image or a row of the records takes",
    "count": "how many rounds, images or rows there are, each of which takes the same time",
    "step": "how fast a client makes its local steps",
    "build": "data and model as they are built, or whether they can be",
    "partition": "which client holds which images",
    "start": "the accuracy with a ridge head before training",
}


@dataclass(frozen=True)
class Condition:
    """A condition that a configuration meets or not, in words and as a function."""

    words: str
    holds: Callable[[Any], bool]

    def __and__(self, other: "Condition") -> "Condition":
        """Return the condition that both hold."""
        words = f"{self.words} and {other.words}"
        return Condition(words, lambda config: self.holds(config) and other.holds(config))

    def __or__(self, other: "Condition") -> "Condition":
        """Return the condition that one of them holds."""
        words = f"{self.words} or {other.words}"
        return Condition(words, lambda config: self.holds(config) or other.holds(config))


ALWAYS = Condition("always", lambda config: True)


def key_is(key: str, *values: Value) -> Condition:
    """Return the condition that a key has one of the values."""
    name = key.replace("-", "_")
    words = " or ".join(str(value).lower() for value in values)
    return Condition(f"{key} is {words}", lambda c: getattr(c, name) in values)


@dataclass(frozen=True)
class Key:
    """A key of the configuration and all that the code knows about it.

    Attributes
    ----------
    name : str
        With hyphens; the field of `RunConfig` has underscores.
    kind : type
        bool, int, float or str.
    allowed : str
        What the value may be, to end the sentence "lr is ...".
    check : callable
        Tells whether a value of the right type is allowed.
    reason : str
        What the key is for, in one line.
    decides : frozenset of str
        Words of `DECIDES`.
    read_when : Condition
        The configurations in which something reads the key; in all others it is idle.
    options : tuple of str
        All allowed values, where they can be listed.
    scales_with_rounds : bool
        The value is a number of rounds of training, or from one event to the next in them.
    fewest_rounds : int
        The least value that it is scaled to.
    synonyms : tuple of str
        What other tools call it, in lower case with hyphens: a message suggests the key for these.
    """

    name: str
    kind: type
    default: Value
    allowed: str
    check: Callable[[Any], bool]
    reason: str
    decides: frozenset[str]
    read_when: Condition = ALWAYS
    options: tuple[str, ...] = ()
    scales_with_rounds: bool = False
    fewest_rounds: int = 1
    synonyms: tuple[str, ...] = ()

    def checked(self, value: Any) -> Value:
        """Return the value in the key's type; numbers of NumPy become Python's.

        Raises
        ------
        ConfigError
            When the value is not allowed; the sentence says what is.
        """
        typed, limits = value, ""
        if self.kind in (int, float) and isinstance(value, numbers.Real):
            typed, limits = _number(value, self.kind)
        right_type = isinstance(typed, self.kind) and isinstance(typed, bool) == (self.kind is bool)
        if not right_type or limits or not self.check(typed):
            near = did_you_mean(value, self.options) if isinstance(value, str) else ""
            raise ConfigError(
                f"{self.name} = {_shortened(value)} is not allowed: {self.name} is "
                f"{limits}{self.allowed}" + (near and f"; {near}")
            )
        checked: Value = typed
        return checked


def _number(value: numbers.Real, kind: type) -> tuple[Any, str]:
    """Return a number as int or float, and which limit of every key of that type it is beyond."""
    if isinstance(value, bool):
        return value, ""
    if kind is int:
        if not isinstance(value, numbers.Integral):
            return value, ""
        return int(value), "" if int(value) < 2**63 else "below 2^63, "
    try:
        found = float(value)
    except OverflowError:  # an integer of more than 308 digits
        found = math.inf
    if not math.isfinite(found):
        return found, "finite, "
    return found, "" if abs(found) <= _LARGEST else f"at most {_LARGEST:g} in size, "


def _shortened(value: Any) -> str:
    """Return the value as it was typed, or its beginning if it is long."""
    try:
        words = repr(value)
    except ValueError:  # Python writes out no integer of more than 4300 digits
        words = hex(value)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}... ({len(words)} characters)"


class Range(NamedTuple):
    """Which numbers are allowed, in words and as a function."""

    allowed: str
    check: Callable[[float], bool]


POSITIVE = Range("a number above 0", lambda value: value > 0)
NOT_NEGATIVE = Range("a number of at least 0", lambda value: value >= 0)
SHARE = Range("a share above 0, at most 1", lambda value: 0 < value <= 1)
INNER_SHARE = Range("a share above 0 and below 1", lambda value: 0 < value < 1)
UP_TO_ONE = Range("a number from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Range("a number from 0 to below 1", lambda value: 0 <= value < 1)


def or_zero(what: str, meaning: str) -> Range:
    """Return the positive numbers, and zero with a meaning of its own."""
    return Range(f"{what} above 0, or 0 {meaning}", NOT_NEGATIVE.check)


def _entry(
    default: Value,
    allowed: str,
    check: Callable[[Any], bool],
    decides: str,
    reason: str,
    synonyms: str = "",
    **more: Any,
) -> Any:
    """Return a dataclass field that carries all of a `Key` but its name, kind and default."""
    metadata = {"allowed": allowed, "check": check, "reason": reason, **more}
    words = {"decides": frozenset(decides.split()), "synonyms": tuple(synonyms.split())}
    return field(default=default, metadata=metadata | words)


def choice(default: str, options: Iterable[str], decides: str, reason: str, **more: Any) -> Any:
    """Declare a key whose value is one of the options."""
    options = tuple(options)
    allowed = "one of " + ", ".join(options)
    return _entry(default, allowed, options.__contains__, decides, reason, options=options, **more)


def text(
    default: str,
    allowed: str,
    decides: str,
    reason: str,
    check: Callable[[str], Any] = str.strip,
    **more: Any,
) -> Any:
    """Declare a key whose value is a text: any that is not blank, unless a check says more."""
    return _entry(default, allowed, lambda value: bool(check(value)), decides, reason, **more)


def flag(default: bool, decides: str, reason: str, **more: Any) -> Any:
    """Declare a key that is true or false."""
    return _entry(default, "true or false", lambda value: True, decides, reason, **more)


def whole(
    default: int, low: int, decides: str, reason: str, *, high: int | None = None, **more: Any
) -> Any:
    """Declare a key whose value is a whole number, up to 64 bits where no highest one is given."""
    allowed = f"a whole number of at least {low}"
    if high is None:
        high = 2**63 - 1
    else:
        allowed = f"a whole number from {low} to {high}"
    return _entry(default, allowed, lambda value: low <= value <= high, decides, reason, **more)


def number(default: float, within: Range, decides: str, reason: str, **more: Any) -> Any:
    """Declare a key whose value is a finite number within a range."""

    def check(value: float) -> bool:
        return math.isfinite(value) and within.check(value)

    return _entry(default, within.allowed, check, decides, reason, **more)


def toml_table(keys: Iterable[Key]) -> str:
    """Return a line `name = default # reason` for each key, with the reasons aligned."""
    lines = [(tomli_w.dumps({key.name: key.default}).strip(), key.reason) for key in keys]
    width = max(len(line) for line, _ in lines)
    return "".join(f"{line:<{width}} # {reason}\n" for line, reason in lines)


def markdown_table(keys: Iterable[Key]) -> str:
    """Return a Markdown table with a row for each key, and what the words of its last column say.

    Columns: the key, its default, what is allowed, its reason, when it is read, what it decides.
    """
    rows: list[tuple[str, ...]] = [
        ("Key", "Default", "Allowed", "What it is", "Read when", "Decides"),
        ("---",) * 6,
    ]
    for key in keys:
        default = tomli_w.dumps({"": key.default}).partition("= ")[2].strip()
        decides = ", ".join(word for word in DECIDES if word in key.decides)
        words = (key.allowed, key.reason, key.read_when.words, decides)
        rows.append(
            (f"`{key.name}`", f"`{default}`", *(cell.replace("<", "\\<") for cell in words))
        )
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return table + "\n" + "".join(f"- **{word}**: {what}.\n" for word, what in DECIDES.items())
