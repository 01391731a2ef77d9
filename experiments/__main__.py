"""`fedta COMMAND`, which is `python -m experiments COMMAND`: tables of presets."""

import argparse
import importlib
import os
import sys

from experiments.arguments import check, parse, program
from experiments.exit_status import ExitStatus
from fedta_app.errors import RunError, disk_sentence
from fedta_app.runs.command import to_continue, typed


def main(arguments: list[str] | None = None) -> ExitStatus:
    """Run the command and return its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parse(words)
    with typed([*program(), *words]):
        return _run(options)


def _run(options: argparse.Namespace) -> ExitStatus:
    try:
        check(options)
        command = importlib.import_module(f"experiments.commands.{options.command}")
        status: ExitStatus = command.run(options)
        sys.stdout.flush()  # here, where a closed pipe is caught
    except (ValueError, RunError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return ExitStatus.REFUSED
    except BrokenPipeError:  # whoever reads, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.OUTPUT_CLOSED
    except OSError as error:  # a full disk, a folder that is not ours
        print(f"error: {disk_sentence(error)}", file=sys.stderr, flush=True)
        return ExitStatus.FAILED
    except KeyboardInterrupt:
        print(f"interrupted; {to_continue()}", flush=True)
        return ExitStatus.INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
