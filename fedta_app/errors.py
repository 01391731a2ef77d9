"""The errors that end a command with one sentence in place of a traceback."""

# What starts a run over, for sentences that advise it: the key, which `flwr run` and Python take,
# and the option, because most runs are started on the command line.
NO_RESUME = "resume = false, or --no-resume on the command line of experiments"


class ConfigError(ValueError):
    """A key, a value or a combination that no run can use; the message is one sentence."""


class DataError(ValueError):
    """A data set that is missing, damaged or cannot be split as asked."""


class PartitionError(ValueError):
    """A partition that does not exist, or a request that makes no sense."""


class ModelError(ValueError):
    """A model that cannot be built as asked; the message is one sentence for the user."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted; the message is one sentence."""


class RunError(RuntimeError):
    """A run that cannot start or go on; the message is one sentence."""


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error, to quote inside a sentence."""
    text = str(error).strip().split("\n")[0][:160]
    return f"{type(error).__name__}: {text}"


def shortened(text: object, most: int = 300) -> str:
    r"""Return what somebody else said, for a message or a record: not too long, and printable.

    Examples
    --------
    >>> shortened("red: \x1b[31m" + 1000 * "a", 12)
    'red: ?[31maa...'
    """
    said = str(text)
    shown = "".join(letter if letter.isprintable() else "?" for letter in said[:most])
    return shown + "..." * (len(said) > most)


def disk_sentence(error: OSError) -> str:
    """Return which file could not be read or written, and why.

    Examples
    --------
    >>> disk_sentence(OSError(28, "No space left on device", "runs/metrics.csv"))
    'runs/metrics.csv cannot be read or written: No space left on device'
    """
    if error.filename is None or not error.strerror:
        return first_line(error)
    return f"{error.filename} cannot be read or written: {error.strerror}"
