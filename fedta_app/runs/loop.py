"""The round loop of every run, which can be resumed after any round.

A run is a list of phases (make the head, calibrate the mask, measure the start, train) and the
parts that hold its state (the server, the algorithm). After each round the loop records a row and,
if one is due, saves a checkpoint of all parts and of the current phase:

    {"phase": 2, "round": 7, "parts": {"server": ..., "algorithm": ..., "phase/train": ...}}
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from torch import Tensor

from fedta_app import progress
from fedta_app.errors import NO_RESUME, CheckpointError, RunError, first_line
from fedta_app.runs.checkpoint import Checkpoint
from fedta_app.runs.directory import DIVERGED
from fedta_app.runs.finished_model import ModelKeeper
from fedta_app.runs.metrics import Row
from fedta_app.runs.session import RunSession
from fedta_app.vectors.arithmetic import is_finite


class Part(Protocol):
    """A part of the state that a checkpoint holds: dictionaries of tensors and JSON values."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned in an earlier session."""


class Phase:
    """Rounds of one kind; the run can stop after any of them and be resumed there.

    A subclass has a `name` and either `work` or, where a row holds more than a loss, `run_round`.

    Attributes
    ----------
    round : int
        How many of its `num_rounds` rounds are done.
    check : callable
        Called with the loss and the number of a round after its work, before anything is measured;
        the loop sets it, and it raises RunError if training diverged.
    """

    name: ClassVar[str]

    def __init__(self, num_rounds: int) -> None:
        self.num_rounds = num_rounds
        self.round = 0
        self.check: Callable[[float | None, int], None] = lambda loss, number: None

    def work(self, number: int) -> float | None:
        """Do round 1, 2, ... of the phase; return its mean training loss, None if it has none."""
        raise NotImplementedError

    def run_round(self, number: int) -> Row:
        """Do a round and return its row, with the seconds that `work` took."""
        began = time.perf_counter()
        loss = self.work(number)
        seconds = round(time.perf_counter() - began, 4)
        self.check(loss, number)
        return Row(number, self.name, train_loss=loss, seconds=seconds)

    def state_dict(self) -> dict[str, Any]:
        """Return the partial results that a checkpoint holds during the phase."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore partial results from a checkpoint."""


class RoundLoop:
    """Runs the phases in order, and records and checkpoints each round.

    Parameters
    ----------
    phases : sequence of Phase
    parts : mapping from name to Part
        The state of the run.
    session : RunSession
    keeper : ModelKeeper
        Keeps the best and the last model.
    sha256 : callable
        Returns the sha256 of the current weights.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        parts: Mapping[str, Part],
        session: RunSession,
        keeper: ModelKeeper,
        sha256: Callable[[], str],
    ) -> None:
        self._phases = phases
        self._parts = parts
        self._session = session
        self._keeper = keeper
        self._sha256 = sha256
        self._current = 0
        for phase in phases:
            phase.check = self._check_finite

    def run(self) -> None:
        """Run the remaining rounds, until the last one or a reason to stop.

        Raises
        ------
        RunError
            When training diverged: a loss of a round is not finite, or what a checkpoint would hold
            after it is not. The checkpoint before it stays.
        """
        session = self._session
        if session.checkpoint:
            self._load(session.checkpoint)
        while (phase := self._next_phase()) is not None:
            if reason := session.stop_reason():
                session.finish("stopped", reason, self._state, self._sha256())
                return
            if phase.name == "start":
                session.initial_sha256 = self._sha256()
            number = f" round {phase.round + 1}" if phase.num_rounds > 1 else ""
            with progress.phase(phase.name + number):
                row = phase.run_round(phase.round + 1)
            _check_figures(row)
            phase.round += 1
            self._keeper.after_round([*session.rows, row])
            session.add(row, self._state)
        self._keeper.at_end(session.rows)
        session.finish("finished", "", self._state, self._sha256())

    def _next_phase(self) -> Phase | None:
        while self._phases[self._current].round == self._phases[self._current].num_rounds:
            if self._current == len(self._phases) - 1:
                return None
            self._current += 1
        return self._phases[self._current]

    def _all_parts(self) -> dict[str, Part]:
        """Return all parts, the current phase included, by their names in a checkpoint."""
        phase = self._phases[self._current]
        return {**self._parts, f"phase/{phase.name}": phase}

    def _state(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self._all_parts().items()}
        position = {"phase": self._current, "round": self._phases[self._current].round}
        return {**position, "parts": parts}

    def _check_finite(self, loss: float | None, number: int) -> None:
        """Raise RunError if the loss of a round, or any tensor of the state, is not finite."""
        if loss is not None and not math.isfinite(loss):
            raise diverged(number, f"loss {loss}")
        for tensor in _not_finite(self._state()["parts"]):
            raise diverged(number, f"{tensor} is not finite")

    def _load(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint, whose hashes are right but which may be another run's.

        Raises
        ------
        CheckpointError
            When it is not one of this run.
        """
        self._go_to(checkpoint.state.get("phase"), checkpoint.state.get("round"), checkpoint.step)
        parts, stored = self._all_parts(), checkpoint.state.get("parts")
        if not isinstance(stored, dict):
            raise CheckpointError(f"the checkpoint of step {checkpoint.step} has no parts")
        if odd := sorted(parts.keys() ^ stored.keys()):
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step} and this run disagree on {odd[0]!r}: "
                "it belongs to another configuration, so choose another name"
            )
        for name, part in parts.items():
            try:
                part.load_state_dict(stored[name])
            except (CheckpointError, RunError):
                raise
            except Exception as error:  # whatever values of a wrong type or shape lead to
                raise CheckpointError(
                    f"the checkpoint of step {checkpoint.step} holds a {name!r} that is not one of "
                    f"this run ({first_line(error)}): start the run over ({NO_RESUME})"
                ) from error
        self._check_finite(None, self._phases[self._current].round)

    def _go_to(self, phase: Any, number: Any, step: int) -> None:
        """Set phase and round; raise CheckpointError unless they are those of so many rows."""
        if type(phase) is int and type(number) is int and 0 <= phase < len(self._phases):
            before = sum(earlier.num_rounds for earlier in self._phases[:phase])
            if 0 <= number <= self._phases[phase].num_rounds and before + number == step:
                self._current, self._phases[phase].round = phase, number
                return
        raise CheckpointError(
            f"the checkpoint of step {step} is of phase {phase!r}, round {number!r}, which this "
            f"run does not have then: start the run over ({NO_RESUME})"
        )


def _not_finite(state: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Yield the place of each tensor of nested dictionaries that holds NaN or infinity."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _not_finite(value, f"{place}{name}/")
        elif isinstance(value, Tensor) and not is_finite(value):
            yield f"{place}{name}"


def _check_figures(row: Row) -> None:
    """Raise RunError if weights are finite after training, but a loss by them is not."""
    if row.train_loss is not None:
        for name, value in asdict(row).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise diverged(row.round, f"{name} {value}")


def diverged(number: int, reason: str) -> RunError:
    """Return the error of a run that cannot go on after a round, by which tuning recognises it."""
    return RunError(f"{DIVERGED} in round {number} ({reason}): lower lr, or clip")


def check_tensor(stored: Any, like: Tensor, name: str) -> Tensor:
    """Return a tensor of a checkpoint; a smaller one would be broadcast where it is copied.

    Raises
    ------
    CheckpointError
        When it is not of the type and the shape of another.
    """
    if not isinstance(stored, Tensor) or (stored.dtype, stored.shape) != (like.dtype, like.shape):
        raise CheckpointError(
            f"the checkpoint's {name} are not {like.dtype} of shape {tuple(like.shape)}: start "
            f"the run over ({NO_RESUME})"
        )
    return stored


def named_by_client(stored: Mapping[str, Any], kind: type[str] | type[list[str]]) -> dict[int, Any]:
    """Return values of a checkpoint by partition id; each is a str, or a list of them.

    Raises
    ------
    TypeError
        When one is not.
    """
    for value in stored.values():
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in value):
            raise TypeError(f"{value!r} is no {kind.__name__} of digests")
    return {int(partition_id): value for partition_id, value in stored.items()}


def check_keys(state: Mapping[str, Any], expected: Sequence[str], part: str) -> None:
    """Check that the stored state of a part has exactly the expected keys.

    Raises
    ------
    CheckpointError
        When a key is missing or unknown; the message names the first such key.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"the checkpoint's {part} is no mapping: start the run over")
    if odd := sorted(state.keys() ^ set(expected)):
        where = "lacks" if odd[0] in expected else "has an unknown"
        raise CheckpointError(f"the checkpoint's {part} {where} {odd[0]!r}: start the run over")
