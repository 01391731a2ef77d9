"""How the commands end, as an exit status."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command ended, as its exit status.

    FINISHED: every run finished. FAILED: at least one failed. REFUSED: an error was found before
    any run. STOPPED: the time was used up. INTERRUPTED: by Ctrl-C. (After both, the same command
    continues.) OUTPUT_CLOSED: the reader of the output went away, as shells report SIGPIPE.
    """

    FINISHED = 0
    FAILED = 1
    REFUSED = 2
    STOPPED = 3
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141
