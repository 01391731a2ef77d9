"""`python -m experiments tune TABLE/PRESET`: hyper-parameters by Optuna, on validation images only.

Trials are runs like others, with `measure-test = "never"`, in `<results-dir>/tune/<label>`;
the study is a SQLite file beside them. A trial that does worse than the median of the others at
the same round is stopped. What is interrupted goes on with the same command, a trial with its
round.

The chosen values go into `experiments/tables/<table>/tuned.toml` (`experiments.running.presets`),
unless the search was under overrides, or no trial was better than no training. The trials, their
figure and what was searched go into `results/tuning/`. A `[tune]` section of table.toml says what
is searched:

    [tune]
    lr = { low = 1e-3, high = 0.3 }    # on a logarithmic scale
    clip-norm = [0.0, 1.0]             # one of these

Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019.
"""

import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy import URL, NullPool
from sqlalchemy.exc import SQLAlchemyError

from experiments.exit_status import ExitStatus
from experiments.running.cells import (
    State,
    by_identity,
    deciding_keys,
    finished_folders,
    identity,
    other_weights,
    progress,
    run_folders,
)
from experiments.running.launch import attempt, preflight
from experiments.running.tuning.space import Space, check_space, grid, suggest, values_of
from experiments.running.tuning.watch import Watch
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError, first_line
from fedta_app.runs.command import to_continue
from fedta_app.runs.directory import DIVERGED, run_path, started_once
from fedta_app.runs.records import read_rows, read_summary
from fedta_app.seeding import derive_seed

STUDY_FILE = "study.db"
_WARMUP_TRIALS = 4  # before any is stopped early
_LEAST_MINUTES = 1e-3  # of a trial: 0 would be without a limit


class Chosen(NamedTuple):
    """The best trial: its values, validation accuracy, and the trials that it was best of.

    `start` is the validation accuracy of that trial in round 0, before any training; None where it
    did not come so far.
    """

    values: dict[str, Any]
    accuracy: float
    start: float | None
    trials: list[dict[str, Any]]

    @property
    def trained(self) -> bool:
        """Whether the best trial is better than no training."""
        return self.start is not None and self.accuracy > self.start

    @property
    def at_edge(self) -> dict[str, str]:
        """The keys whose best value is an extreme of those tried: beyond it may lie a better one.

        To each such key "smallest" or "largest".
        """
        found = {}
        for key, value in self.values.items():
            tried = {trial[key] for trial in self.trials}
            if isinstance(value, bool | str) or len(tried) < 2:
                continue
            if value in (min(tried), max(tried)):
                found[key] = "smallest" if value == min(tried) else "largest"
        return found


@contextmanager
def searching(folder: Path) -> Iterator[None]:
    """Within the block, no other command searches in a folder.

    It would take this one's trial for that of a killed one.

    Raises
    ------
    InUseError
        When one does.
    RunError
        When the study of the folder cannot be read or written.
    """
    try:
        with started_once(folder):
            yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise RunError(
            f"{folder / STUDY_FILE} cannot be used ({first_line(error)}): the trials' runs are "
            "whole; where this file is damaged, delete it, and what has finished is taken over"
        ) from error


class Study:
    """The search of one preset.

    Parameters
    ----------
    config : RunConfig
        The preset's, with everything that is not searched.
    label : str
        Name of the study, and of the folder of its trials.
    space : mapping
        What is searched, as in `[tune]`.
    """

    def __init__(self, config: RunConfig, label: str, space: Space) -> None:
        check_space(space)
        for point in grid(space):  # before any trial: values that are fine alone, and not together
            config.with_values(**{k.replace("-", "_"): v for k, v in point.items()})
        self._config = config.with_values(
            name=f"tune/{label}", measure_test="never", keep_model="none", resume=True
        )
        self._space = space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder = run_path(self._config).parent
        folder.mkdir(parents=True, exist_ok=True)
        # Of equal ones the last: a finished one, if there is any.
        self._earlier = by_identity([*run_folders(folder), *finished_folders(folder)])
        # Without a pool of connections: nobody would close those, and Python 3.13 warns of them.
        storage = optuna.storages.RDBStorage(
            str(URL.create("sqlite", database=str(folder / STUDY_FILE))),
            engine_kwargs={"poolclass": NullPool},
        )
        self._study = optuna.create_study(
            storage=storage,
            study_name=f"{label} {self._digest()}",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_WARMUP_TRIALS),
        )
        self._interrupted = threading.Event()
        # What a killed process was trying comes first; its run goes on where it was.
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)
            self._study.enqueue_trial(trial.params)

    def _enqueue_next(self) -> None:
        """Put the next point of a grid in the queue, where nothing waits there.

        Not all at once: a trial that was interrupted would have to wait for all the others. Those
        that failed are tried again after the others.
        """
        points = grid(self._space)
        for again in (False, True):
            done = [trial.params for trial in (self._done() if again else self._study.trials)]
            for point in points:
                if self._study.get_trials(states=(TrialState.WAITING,)):
                    return
                if point not in done:
                    self._study.enqueue_trial(point)

    def _digest(self) -> str:
        """Tell studies apart: another space, or another configuration, is another study."""
        rest = {k: v for k, v in deciding_keys(self._config).items() if k not in self._space}
        return hashlib.sha256(json.dumps([self._space, rest]).encode()).hexdigest()[:8]

    def _done(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials that have an outcome."""
        return self._study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))

    def run(
        self, trials: int, minutes: float, *, client_cpus: int, client_gpus: float | None
    ) -> ExitStatus:
        """Run trials until there are so many, or the time is up; return how that ended.

        A space of lists has no more trials than points. When the time is up in the middle of a
        trial, that one stops after its round.

        Raises
        ------
        ConfigError
            When it cannot be run, or its trials had other weights than the file holds now.
        """
        trials = min(trials, len(grid(self._space)) or trials)
        end = time.monotonic() + 60 * minutes
        preflight(self._config, client_cpus=client_cpus, client_gpus=client_gpus)
        for folder in self._folders():
            self._check_weights(folder)
        options = {"client_cpus": client_cpus, "client_gpus": client_gpus}
        while len(self._done()) < trials:
            if self._interrupted.is_set():
                print(f"interrupted; {to_continue()}", flush=True)
                return ExitStatus.INTERRUPTED
            if minutes and time.monotonic() > end:
                print(f"--max-minutes {minutes:g} is used up; {to_continue()}", flush=True)
                return ExitStatus.STOPPED
            # A sampler that is made anew must not draw again what it drew before.
            seed = derive_seed(self._config.seed, "tune", len(self._study.trials)) % 2**32
            self._study.sampler = optuna.samplers.TPESampler(seed=seed)
            self._enqueue_next()
            left = max(_LEAST_MINUTES, (end - time.monotonic()) / 60) if minutes else 0.0
            if (status := self._try(self._study.ask(), left, options)) != ExitStatus.FINISHED:
                return status  # the trial goes on, or is tried again, with the same command
        return ExitStatus.FINISHED

    def _try(self, trial: optuna.Trial, minutes: float, options: dict[str, Any]) -> ExitStatus:
        """Run a trial and tell the study its outcome; one without an outcome gives its status."""
        values = suggest(trial, self._space)
        config = self._config_of(values).with_values(max_minutes=minutes)
        words = ", ".join(f"{key} = {value}" for key, value in values.items())
        print(f"trial {trial.number}: {words}", flush=True)
        self._check_weights(run_path(config))
        watch = Watch(trial, config)
        status = ExitStatus.FINISHED
        if progress(config).state is not State.FINISHED:
            with watch.running():
                status = attempt(config, interrupted=self._interrupted, **options)
        watch.look()
        if status == ExitStatus.FINISHED:
            self._study.tell(trial, read_summary(run_path(config))["final"]["val_accuracy"])
        elif watch.pruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        elif status == ExitStatus.FAILED and _diverged(run_path(config)):
            self._study.tell(trial, 0.0)  # the worst there is: these values are known to be bad
        else:
            if status == ExitStatus.FAILED:  # the next start begins with others
                self._study.tell(trial, state=TrialState.FAIL)
            return status
        return ExitStatus.FINISHED

    def _config_of(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration of a trial, whose run is named by what it computes.

        A run of the same that has another name, because fedta had fewer keys then, is taken over.
        """
        config = self._config.with_values(**{k.replace("-", "_"): v for k, v in values.items()})
        found = identity(config)
        earlier = self._earlier.get(found)
        name = earlier.parent.name if earlier else found[:12]
        return config.with_values(name=f"{config.name}/{name}")

    def codes(self) -> list[Mapping[str, Any]]:
        """Return what the trials ran: see `fedta_app.runs.provenance.code_facts`."""
        return [read_summary(folder).get("code") or {} for folder in self._folders()]

    def _folders(self) -> list[Path]:
        """Return the run directories of the trials, those that are there."""
        tried = [trial.params for trial in self._study.trials]
        known = [params for params in tried if params.keys() == self._space.keys()]
        paths = {run_path(self._config_of(values_of(params, self._space))) for params in known}
        return sorted(path for path in paths if path.is_dir())

    def _check_weights(self, folder: Path) -> None:
        """Raise ConfigError if a trial had other weights than the file holds now."""
        if other := other_weights(self._config, read_summary(folder)):
            raise ConfigError(f"{folder} {other}: --name NAME makes another search")

    def chosen(self) -> Chosen:
        """Return the best trial so far; of equal ones the first."""
        trials = []
        for trial in self._done():
            measured = trial.intermediate_values
            last = measured[max(measured)] if measured else math.nan
            trials.append(
                {
                    "trial": trial.number,
                    **values_of(trial.params, self._space),
                    "state": trial.state.name.lower(),
                    "val accuracy": last if trial.value is None else trial.value,
                    "rounds": max(measured, default=0),
                }
            )
        best = self._study.best_trial
        values = values_of(best.params, self._space)
        rows = read_rows(run_path(self._config_of(values)))
        start = [row["val_accuracy"] for row in rows if row["phase"] == "start"]
        measured_start = float(start[0]) if start and start[0] else None
        return Chosen(values, float(best.value or 0.0), measured_start, trials)


def _diverged(folder: Path) -> bool:
    """Tell whether a run failed because of its values: its loss was not finite."""
    return DIVERGED in str(read_summary(folder).get("reason"))
