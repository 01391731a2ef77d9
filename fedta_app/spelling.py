"""What a mistyped word was probably meant to be, for the sentence that refuses it."""

import difflib
from collections.abc import Collection

_FEWEST = 3  # letters that say which word is meant, where a word is only begun


def near_words(typed: str, known: Collection[str], most: int = 3) -> list[str]:
    """Return the known words that are spelled much alike, or else those that begin as typed.

    Examples
    --------
    >>> near_words("FedPorx", ["fedavg", "fedprox"])
    ['fedprox']
    >>> near_words("least", ["least-sensitive", "most-sensitive"])
    ['least-sensitive']
    """
    word = typed.strip().lower()
    alike = difflib.get_close_matches(word, known, n=most)
    if alike or len(word) < _FEWEST:
        return alike
    return [one for one in known if one.startswith(word)][:most]


def did_you_mean(typed: str, known: Collection[str], otherwise: str = "") -> str:
    """Return the question whether a near word was meant; where there is none, the other text."""
    near = near_words(typed, known)
    return f"did you mean {' or '.join(near)}?" if near else otherwise
