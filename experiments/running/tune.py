"""`python -m experiments tune TABLE/PRESET`: hyper-parameters by Optuna, on validation images only.

Trials are ordinary runs with `measure-test = "never"`, in `<results-dir>/tune/<label>`; the study
is a SQLite file beside them. A trial is stopped when it is worse than the median of the others at
the same round. The same command continues an interrupted study, and the trial in progress.

The chosen values go into `experiments/tables/<table>/tuned.toml` (`experiments.running.presets`),
the trials and their figure into `results/tuning/`. The `[tune]` section of table.toml lists the
keys to search:

    [tune]
    lr = { low = 1e-3, high = 0.3 }    # on a logarithmic scale
    clip-norm = [0.0, 1.0]             # one of these

Akiba et al., "Optuna: A Next-generation Hyperparameter Optimization Framework", KDD 2019.
"""

import hashlib
import itertools
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.running.cells import (
    State,
    deciding_keys,
    identity,
    progress,
    read_rows,
    read_summary,
)
from experiments.running.launch import ExitStatus, attempt, preflight
from fedta_app.config import KEYS, RunConfig
from fedta_app.errors import ConfigError
from fedta_app.runs.directory import DIVERGED, STOP_FILE, run_path
from fedta_app.seeding import derive_seed

if TYPE_CHECKING:
    import optuna

Space = Mapping[str, Any]
DEFAULT_SPACE: Space = {"lr": {"low": 1e-3, "high": 0.3}}
_POLL_SECONDS = 0.2
_WARMUP_TRIALS = 4  # these are never stopped early


@dataclass(frozen=True)
class Chosen:
    """The values and validation accuracy of the best trial, and a record of all trials."""

    values: dict[str, Any]
    accuracy: float
    trials: list[dict[str, Any]]


class Study:
    """The search of one preset.

    Parameters
    ----------
    config : RunConfig
        The preset's configuration; the keys of `space` are replaced in each trial.
    label : str
        The name of the study and of the folder of its trials.
    space : mapping
        The keys to search, as in `[tune]`.
    """

    def __init__(self, config: RunConfig, label: str, space: Space) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                'tuning needs optuna, which is not installed: pip install -e ".[dev]"'
            ) from error
        check_space(space)
        self._config = config.with_values(name=f"tune/{label}", measure_test="never", resume=True)
        self._space = space
        self._optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder = run_path(self._config).parent
        folder.mkdir(parents=True, exist_ok=True)
        self._study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            study_name=f"{label} {self._digest()}",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_WARMUP_TRIALS),
        )
        self._take_up_again()
        for point in self._grid:  # try each point of a grid once
            self._study.enqueue_trial(point, skip_if_exists=True)

    @property
    def _grid(self) -> list[dict[str, Any]]:
        """Return all points of a space of lists, or nothing if a key has a range."""
        if not all(isinstance(choice, list) for choice in self._space.values()):
            return []
        points = itertools.product(*self._space.values())
        return [dict(zip(self._space, point, strict=True)) for point in points]

    def _digest(self) -> str:
        """Return a text by which studies of other spaces or configurations differ."""
        rest = {k: v for k, v in deciding_keys(self._config).items() if k not in self._space}
        return hashlib.sha256(json.dumps([self._space, rest]).encode()).hexdigest()[:8]

    def _take_up_again(self) -> None:
        """Enqueue the trials that a killed process left unfinished; their runs are resumed."""
        running = self._optuna.trial.TrialState.RUNNING
        for trial in self._study.get_trials(states=(running,)):
            self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
            self._study.enqueue_trial(trial.params)

    def done(self) -> int:
        """Return how many trials are complete or pruned."""
        states = self._optuna.trial.TrialState
        return len(self._study.get_trials(states=(states.COMPLETE, states.PRUNED)))

    def run(
        self, trials: int, minutes: float, *, client_cpus: int, client_gpus: float | None
    ) -> ExitStatus:
        """Run trials until there are `trials` of them, or the time is used up; return how it ended.

        A space of lists gives no more trials than it has points.
        """
        trials = min(trials, len(self._grid) or trials)
        preflight(self._config, client_gpus=client_gpus)
        began = time.monotonic()
        options = {"client_cpus": client_cpus, "client_gpus": client_gpus}
        while self.done() < trials:
            if minutes and time.monotonic() - began > 60 * minutes:
                print(f"--max-minutes {minutes:g} is used up; the same command continues")
                return ExitStatus.INTERRUPTED
            # The seed depends on the trial, so that a resumed study does not repeat its draws.
            seed = derive_seed(self._config.seed, "tune", len(self._study.trials)) % 2**32
            self._study.sampler = self._optuna.samplers.TPESampler(seed=seed)
            if (status := self._try(self._study.ask(), options)) != ExitStatus.FINISHED:
                return status  # the same command resumes or repeats the trial
        return ExitStatus.FINISHED

    def _try(self, trial: "optuna.Trial", options: dict[str, Any]) -> ExitStatus:
        """Run a trial and report its outcome; without an outcome, return how the run ended."""
        values = suggest(trial, self._space)
        config = self._config.with_values(**{k.replace("-", "_"): v for k, v in values.items()})
        config = config.with_values(name=f"{config.name}/{identity(config)[:12]}")
        words = ", ".join(f"{key} = {value}" for key, value in values.items())
        print(f"trial {trial.number}: {words}", flush=True)
        watch = _Watch(trial, config)
        status = ExitStatus.FINISHED
        if progress(config).state is not State.FINISHED:
            with watch.running():
                status = attempt(config, **options)
        watch.look()
        if status == ExitStatus.FINISHED:
            self._study.tell(trial, read_summary(run_path(config))["final"]["val_accuracy"])
        elif watch.pruned:
            self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
        elif status == ExitStatus.FAILED and _diverged(run_path(config)):
            self._study.tell(trial, 0.0)  # the worst possible value, since the run diverged
        else:
            return status
        return ExitStatus.FINISHED

    def chosen(self) -> Chosen:
        """Return the best trial so far; of equal ones, the first."""
        states = self._optuna.trial.TrialState
        trials = [
            {
                "trial": trial.number,
                **values_of(trial.params, self._space),
                "state": trial.state.name.lower(),
                "val accuracy": trial.value if trial.value is not None else _last(trial),
                "rounds": max(trial.intermediate_values, default=0),
            }
            for trial in self._study.get_trials(states=(states.COMPLETE, states.PRUNED))
        ]
        best = self._study.best_trial
        return Chosen(values_of(best.params, self._space), float(best.value or 0.0), trials)


def _diverged(folder: Path) -> bool:
    """Return whether a run failed because training diverged."""
    return str(read_summary(folder).get("reason")).startswith(DIVERGED)


def check_space(space: Space) -> None:
    """Raise ConfigError if the space has an unknown key or a wrong range."""
    for key, choice in space.items():
        if key not in KEYS:
            raise ConfigError(f"[tune] {key} is not a key of the run configuration")
        ends = choice if isinstance(choice, dict) else {}
        if not (choice and isinstance(choice, list)) and set(ends) != {"low", "high"}:
            raise ConfigError(
                f"[tune] {key} = {choice!r} is not allowed: it is a list of values, or "
                "{ low = ..., high = ... }"
            )


def suggest(trial: "optuna.Trial", space: Space) -> dict[str, Any]:
    """Return the values that the study suggests for a new trial."""
    for key, choice in space.items():
        if isinstance(choice, list):
            trial.suggest_categorical(key, choice)
        else:
            trial.suggest_float(key, choice["low"], choice["high"], log=True)
    return values_of(trial.params, space)


def values_of(parameters: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return the values of a trial, with ranges rounded to three significant digits."""
    return {
        key: parameters[key] if isinstance(choice, list) else float(f"{parameters[key]:.3g}")
        for key, choice in space.items()
    }


def _last(trial: Any) -> float:
    found = trial.intermediate_values
    return float(found[max(found)]) if found else math.nan


class _Watch:
    """Reports the measurements of a run to the study, and stops the run if it is pruned."""

    def __init__(self, trial: "optuna.Trial", config: RunConfig) -> None:
        self.pruned = False
        self._trial = trial
        self._folder = run_path(config)
        self._seen: set[int] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Check the run regularly until the block ends."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_POLL_SECONDS):
                self.look()
                if not self.pruned and self._trial.should_prune():
                    self.pruned = True
                    (self._folder / STOP_FILE).touch()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def look(self) -> None:
        """Report new measurements."""
        for row in read_rows(self._folder):
            number = int(row["round"])
            if row["phase"] == "train" and row["val_accuracy"] and number not in self._seen:
                self._seen.add(number)
                self._trial.report(float(row["val_accuracy"]), number)
