"""Where the figures of a run go besides metrics.csv: TensorBoard, and one service by a key.

`logger = "wandb"` or `"trackio"` sends every row to Weights & Biases or Trackio as well. Their
packages are imported only then. A logger is watched over: one that fails is left out for the rest
of the session, with one warning, and the run goes on.
"""

import importlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, first_line
from fedta_app.runs.metrics import Row


class RunLogger(Protocol):
    """Somewhere that the rows of a run are written to."""

    def add(self, row: Row) -> None:
        """Write the measured figures of a row."""

    def close(self) -> None:
        """Write what is left; nothing is added afterwards."""


def scalars(row: Row) -> dict[str, float]:
    """Return the measured figures of a row by phase and column, such as `train/val_accuracy`.

    Round 0, which the phase `start` measures, is the first point of `train`: one line, against one
    axis. The rounds of other phases count for themselves, under names of their own.

    Examples
    --------
    >>> figures = scalars(Row(0, "start", val_accuracy=0.5))
    >>> figures["train/val_accuracy"], "train/test_accuracy" in figures
    (0.5, False)
    """
    values = {name: value for name, value in asdict(row).items() if value is not None}
    del values["round"], values["phase"]
    return {f"{axis(row)}/{name}": value for name, value in values.items()}


def axis(row: Row) -> str:
    """Return the phase whose rounds the row is counted in."""
    return "train" if row.phase == "start" else row.phase


class TensorBoard:
    """An event file in a folder, whose step is the round of the phase.

    A session that is resumed has the events of earlier ones purged, and writes their rows anew:
    TensorBoard could purge the lost rounds of a phase only together with those of the others.

    The file is written here, and not by a thread of TensorBoard's, whose errors nobody could catch.
    """

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        # TensorBoard takes a second to import: only a run that writes events pays for it.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        # Files are read by the number in their names: the clock may have been set back.
        found = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
        later = [int(number) + 1 for number in found if number.isdecimal()]
        number = max(int(time.time()), *later, 0)
        host = f"{socket.gethostname()}.{os.getpid()}"
        self._path = folder / f"events.out.tfevents.{number}.{host}"
        begin = Event(file_version="brain.Event:2")
        purge = Event(session_log=SessionLog(status=SessionLog.START), step=0)  # of what was read
        self._write([begin, purge, *(event for row in rows for event in _events(row))])

    def add(self, row: Row) -> None:
        """Write the measured figures of a row."""
        self._write(_events(row))

    def _write(self, events: Sequence[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        with self._path.open("ab") as stream:
            writer = RecordWriter(stream)
            for event in events:
                event.wall_time = time.time()
                writer.write(event.SerializeToString())

    def close(self) -> None:
        """Do nothing: every row was written when it was added."""


def _events(row: Row) -> list[Any]:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    points = [Summary.Value(tag=name, simple_value=value) for name, value in scalars(row).items()]
    return [Event(summary=Summary(value=[point]), step=row.round) for point in points]


class WeightsAndBiases:
    """A run of Weights & Biases, which a session that is resumed goes on with.

    Parameters
    ----------
    identifier : str
        The same in all sessions of a run, and in no other run.
    folder : Path
        Where the package keeps its files.
    """

    def __init__(self, config: RunConfig, identifier: str, folder: Path) -> None:
        self._run = _package("wandb").init(
            project=_project("wandb"),
            id=identifier,
            name=f"{config.name}/seed{config.seed}",
            resume="allow",
            dir=str(folder),
            config=config.to_mapping(),
        )

    def add(self, row: Row) -> None:
        """Write the measured figures of a row, against the round of its phase."""
        # Not against the service's own step, which may never decrease: phases count from 1 each.
        rounds = f"{axis(row)}/round"
        self._run.define_metric(f"{axis(row)}/*", step_metric=rounds)
        self._run.log({**scalars(row), rounds: row.round})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class Trackio:
    """A run of Trackio, which a session that is resumed goes on with."""

    def __init__(self, config: RunConfig, identifier: str) -> None:
        self._run = _package("trackio").init(
            project=_project("trackio"),
            name=identifier,
            resume="allow",
            config=config.to_mapping(),
        )

    def add(self, row: Row) -> None:
        """Write the measured figures of a row, against the round of its phase."""
        self._run.log(scalars(row), step=row.round)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class Loggers:
    """All loggers of a session, by name; one that fails is left out, with one warning.

    Parameters
    ----------
    makers : mapping from name to callable
        Each returns a logger.
    """

    def __init__(self, makers: Mapping[str, Callable[[], RunLogger]]) -> None:
        self._open: dict[str, RunLogger] = {}
        for name, make in makers.items():
            with self._watching(name):
                self._open[name] = make()

    def add(self, row: Row) -> None:
        """Write the measured figures of a row."""
        for name, logger in list(self._open.items()):
            with self._watching(name):
                logger.add(row)

    def close(self) -> None:
        """Close the loggers that are left."""
        for name, logger in list(self._open.items()):
            with self._watching(name):
                logger.close()
        self._open.clear()

    @contextmanager
    def _watching(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a service does, the run goes on
            self._open.pop(name, None)
            print(
                f"warning: {name} failed and gets no more figures in this session, metrics.csv has "
                f"them all ({first_line(error)})",
                flush=True,
            )


def open_loggers(config: RunConfig, folder: Path, rows: Sequence[Row], session: str) -> Loggers:
    """Return the loggers of a session: TensorBoard, and the service that the key `logger` names.

    Parameters
    ----------
    folder : Path
        The run directory.
    rows : sequence of Row
        Those of earlier sessions.
    session : str
        The id of the first session of the run.
    """
    identifier = f"{config.name.replace('/', '-')}-seed{config.seed}-{session}"
    services: dict[str, Callable[[], RunLogger]] = {
        "wandb": lambda: WeightsAndBiases(config, identifier, folder),
        "trackio": lambda: Trackio(config, identifier),
    }
    makers: dict[str, Callable[[], RunLogger]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard", rows)
    }
    if config.logger != "none":
        makers[config.logger] = services[config.logger]
    return Loggers(makers)


def check_logger(config: RunConfig) -> None:
    """Import the package that the key `logger` needs, and nothing where it is "none".

    Raises
    ------
    ConfigError
        When it is not installed.
    """
    if config.logger != "none":
        _package(config.logger)


def _package(name: str) -> ModuleType:
    try:
        package = importlib.import_module(name)
        _ = package.init  # a folder of files, such as ./wandb, is imported as an empty package
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"logger = {name!r} is not allowed here: its package cannot be imported "
            f"({first_line(error)}); pip install {name}, or set logger = 'none'"
        ) from error
    return package


def _project(service: str) -> str:
    """Return the project in which the runs are listed: fedta, or what the environment says."""
    return os.environ.get(f"{service.upper()}_PROJECT", "fedta")
