"""The mask rules, one file each.

A new rule is a file in this folder that defines a `fedta_app.masks.rule.MaskRule`; nothing else
needs to know of it. See `agreement.py` for a rule whose clients send a statistic of their own.
"""

from fedta_app.discovery import discover
from fedta_app.masks.rule import MaskRule

_FIRST = (
    "least-sensitive",
    "most-sensitive",
    "lowest-magnitude",
    "highest-magnitude",
    "random",
    "agreement",
    "contrast",
)

_RULES = discover(__name__, MaskRule)
MASK_RULES: tuple[str, ...] = (*_FIRST, *sorted(set(_RULES) - set(_FIRST)))


def rule_named(name: str) -> MaskRule:
    """Return the rule of this name.

    Raises
    ------
    ValueError
        If there is no such rule.
    """
    if name not in _RULES:
        raise ValueError(f"rule is {name!r}; it must be one of {', '.join(MASK_RULES)}.")
    return _RULES[name]


def needs_scores(name: str) -> bool:
    """Return whether the rule of this name ranks by scores, which must be measured on data."""
    return rule_named(name).needs_scores
