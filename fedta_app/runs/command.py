"""The command that started a run, as it was typed, for messages and for the records.

It is kept in an environment variable, because the processes that a command starts, of Flower and of
`--jobs`, inherit that.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_VARIABLE = "FEDTA_COMMAND"


@contextmanager
def typed(words: Sequence[str]) -> Iterator[None]:
    """Within the block, `typed_command` returns these words, quoted for the shell."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = shlex.join(words)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


def typed_command() -> str | None:
    """Return the command, or None where no command of fedta started this process."""
    return os.environ.get(_VARIABLE)


def to_continue() -> str:
    """Return what continues a run that stopped early: the command that it was started with.

    Of its words only those that would start the run over are left out.
    """
    if (command := typed_command()) is None:
        return "the same command continues it"
    words = shlex.split(command)
    while "--no-resume" in words:
        words.remove("--no-resume")
    for number in range(len(words) - 2, -1, -1):
        if words[number] == "--set" and words[number + 1].replace(" ", "") == "resume=false":
            del words[number : number + 2]
    return f"to continue: {shlex.join(words)}"
