"""Tuning: validation images only, resumable, pruned, and written where presets are read."""

import csv
import json
import time
from pathlib import Path

import optuna
import pandas as pd
import pytest
import tomli_w

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.running import presets
from experiments.running.tuning import study as searching
from experiments.running.tuning.outcome import changed_presets, write_choice
from experiments.running.tuning.space import Space, check_space, suggest
from experiments.running.tuning.study import Chosen, Study
from experiments.running.tuning.watch import Watch
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.files import file_sha256, read_toml
from fedta_app.runs import session
from fedta_app.runs.directory import run_path, started_once
from fedta_app.runs.metrics import Row, write_csv
from tests.experiments.interrupting import ctrl_c_after


@pytest.fixture(autouse=True)
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the chosen values out of the repository, beside a table that is quick."""
    quick = {"num-server-rounds": 4, "eval-every": 1, "local-steps": 1, "calibration-rounds": 1}
    quick |= {"num-clients": 10, "eval-size": 100}
    about = read_toml(presets.FOLDER / "smoke/table.toml")
    folder = tmp_path / "tables/smoke"
    folder.mkdir(parents=True)
    (folder / "table.toml").write_text(tomli_w.dumps(about | {"base": about["base"] | quick}))
    monkeypatch.setattr(presets, "FOLDER", tmp_path / "tables")
    return folder / "tuned.toml"


@pytest.fixture
def better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every best trial be better than no training: trials of four rounds need not be."""
    monkeypatch.setattr(Chosen, "trained", True)


def arguments(folder: Path, trials: int, *more: str) -> list[str]:
    places = ["--results-dir", str(folder / "runs"), "--out", str(folder / "results")]
    return [
        "tune", "smoke/random-iid", "--engine", "in-process", "--trials", str(trials), *places,
        *more,
    ]  # fmt: skip


def trials_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results/tuning/smoke-random-iid/trials.csv")


def test_a_study_is_continued_and_its_choice_becomes_the_presets(
    tmp_path: Path,
    tuned: Path,
    better: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(arguments(tmp_path, 2)) == ExitStatus.FINISHED
    assert capsys.readouterr().out.count("\ntrial ") == 1  # after the first
    assert main(arguments(tmp_path, 3, "--for", "random-*")) == ExitStatus.FINISHED
    assert capsys.readouterr().out.startswith("trial 2: ")
    trials = trials_of(tmp_path)
    assert trials["trial"].tolist() == [0, 1, 2] and trials["lr"].nunique() == 3
    best = trials.loc[trials["val accuracy"].idxmax()]
    sections = read_toml(tuned)
    assert list(sections) == ["random-iid", "random-*"]
    assert sections["random-*"] == {"lr": best["lr"]}
    _, (preset,) = presets.select("smoke/random-nc1")
    assert preset.config({}).lr == best["lr"]
    _, (other,) = presets.select("smoke/least-nc1")
    assert other.config({}).lr != best["lr"]
    figure = tmp_path / "results/tuning/smoke-random-iid/study"
    assert figure.with_suffix(".svg").exists() and figure.with_suffix(".png").exists()
    record = read_toml(figure.with_name("search.toml"))
    assert record["preset"] == "smoke/random-iid" and record["overrides"] == {}
    assert record["trials"] == 3 and record["best"]["lr"] == best["lr"]
    assert list(record["at-edge"]) == (["lr"] if best["lr"] != trials["lr"].median() else [])
    assert record["space"] == {"lr": {"low": 1e-3, "high": 0.3}}
    assert record["not-written-because"] == "" and "--for 'random-*'" in record["command"]
    assert (record["dataset"], record["model"]) == ("digits", "vit_digits")
    assert (record["num-server-rounds"], record["seed"]) == (4, 0)
    assert {"commit", "weights", "start-accuracy"} <= record.keys()
    assert str(tmp_path) not in figure.with_name("search.toml").read_text()
    measured = list((tmp_path / "runs/tune").rglob("metrics.csv"))
    assert len(measured) == 3
    for path in measured:
        with path.open() as stream:
            assert not any(row["test_accuracy"] for row in csv.DictReader(stream))
    # As after an upgrade with more keys: the runs have other names, and the study is another one.
    for path in measured:
        trial = path.parents[1]
        trial.rename(trial.with_name(f"older-{trial.name}"))
    (measured[0].parents[2] / "study.db").unlink()
    monkeypatch.setattr(searching, "attempt", lambda *_, **__: ExitStatus.FAILED)
    assert main(arguments(tmp_path, 3)) == ExitStatus.FINISHED
    pd.testing.assert_frame_equal(trials_of(tmp_path), trials)


@pytest.mark.parametrize(
    ("best", "tried", "edge"),
    [
        (0.1, [0.1, 0.2, 0.3], {"lr": "smallest"}),
        (0.3, [0.2, 0.3, 0.1], {"lr": "largest"}),
        (0.2, [0.1, 0.2, 0.3], {}),
        (0.2, [0.2], {}),
        ("a", ["a", "b"], {}),
    ],
)
def test_a_best_value_at_the_edge_of_those_tried_is_known(
    best: float | str, tried: list[float | str], edge: dict[str, str]
) -> None:
    trials = [{"trial": number, "lr": value} for number, value in enumerate(tried)]
    assert Chosen({"lr": best}, 0.5, 0.4, trials).at_edge == edge


def test_a_choice_that_is_made_anew_keeps_its_place(tuned: Path) -> None:
    tuned.write_text('["random-*"]\nlr = 0.1\n\n[random-nc1]\nlr = 0.2\n')
    before = presets.load_table("smoke")
    write_choice("smoke", "", "random-*", {"lr": 0.3})
    assert list(read_toml(tuned)) == ["random-*", "random-nc1"]
    assert changed_presets(before, presets.load_table("smoke")) == ["random-iid: lr = 0.3"]


def test_ctrl_c_ends_the_study_and_the_trial_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        ctrl_c_after(patch, lambda row: (row.phase, row.round) == ("train", 2))
        assert main(arguments(tmp_path, 1)) == ExitStatus.INTERRUPTED
    first = capsys.readouterr().out
    assert main(arguments(tmp_path, 1)) == ExitStatus.FINISHED
    second = capsys.readouterr().out
    assert first.split("lr = ")[1].split()[0] == second.split("lr = ")[1].split()[0]
    assert "resumed after" in second
    assert len(list((tmp_path / "runs/tune").rglob("metrics.csv"))) == 1


def test_a_trial_that_falls_behind_is_stopped(tmp_path: Path) -> None:
    class Trial:
        def __init__(self) -> None:
            self.reported: dict[int, float] = {}

        def report(self, value: float, step: int) -> None:
            self.reported[step] = value

        def should_prune(self) -> bool:
            return bool(self.reported)

    config = RunConfig.from_mapping({"results-dir": str(tmp_path), "name": "x"})
    folder = tmp_path / "x/seed0"
    folder.mkdir(parents=True)
    rows = [Row(0, "start", val_accuracy=0.1), Row(1, "train", val_accuracy=0.2)]
    write_csv(folder / "metrics.csv", rows)
    trial = Trial()
    watch = Watch(trial, config)  # type: ignore[arg-type]
    with watch.running():
        deadline = time.monotonic() + 60
        while not (folder / "stop").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert trial.reported == {1: 0.2} and watch.pruned


def test_another_space_is_another_study(tmp_path: Path) -> None:
    config = RunConfig(name="a", results_dir=str(tmp_path), engine="in-process")
    spaces: list[Space] = [{"lr": [0.1, 0.2]}, {"lr": [0.1, 0.3]}, {"lr": [0.1, 0.2]}]
    first, other, again = (Study(config, "a", space) for space in spaces)
    first._study.tell(first._study.ask(), 0.5)
    assert [len(study._done()) for study in (first, other, again)] == [1, 0, 1]
    descriptors = list(Path("/proc/self/fd").glob("*"))  # none but on Linux
    opened = [str(path.resolve()) for path in descriptors]
    assert not [name for name in opened if name.startswith(str(tmp_path.resolve()))]


def test_every_point_of_a_list_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space: Space = {"lr": [0.1, 0.2], "clip-norm": [0.0, 1.0]}
    config = RunConfig(name="a", results_dir=str(tmp_path), engine="in-process")
    tried = []

    def tell(study: Study, trial: optuna.Trial, minutes: float, options: object) -> int:
        values = suggest(trial, space)
        tried.append((values["lr"], values["clip-norm"]))
        study._study.tell(trial, values["lr"])
        return ExitStatus.FINISHED

    monkeypatch.setattr(searching, "preflight", lambda *arguments, **options: None)
    monkeypatch.setattr(Study, "_try", tell)
    for _ in range(2):  # as after an interruption
        Study(config, "a", space).run(3, 0, client_cpus=1, client_gpus=None)
    Study(config, "a", space).run(20, 0, client_cpus=1, client_gpus=None)
    assert sorted(tried) == [(0.1, 0.0), (0.1, 1.0), (0.2, 0.0), (0.2, 1.0)]


def test_an_interrupted_trial_goes_on_before_another_point_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(name="a", results_dir=str(tmp_path), engine="in-process")
    tried: list[float] = []

    def stop_twice(study: Study, trial: optuna.Trial, minutes: float, options: object) -> int:
        tried.append(suggest(trial, {"lr": [0.1, 0.2, 0.3]})["lr"])
        if len(tried) < 3:
            return ExitStatus.STOPPED
        study._study.tell(trial, 0.5)
        return ExitStatus.FINISHED

    monkeypatch.setattr(searching, "preflight", lambda *arguments, **options: None)
    monkeypatch.setattr(Study, "_try", stop_twice)
    for _ in range(3):
        Study(config, "a", {"lr": [0.1, 0.2, 0.3]}).run(3, 0, client_cpus=1, client_gpus=None)
    assert tried == [0.1, 0.1, 0.1, 0.2, 0.3]


def test_a_point_that_cannot_run_does_not_keep_the_others_from_being_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(name="a", results_dir=str(tmp_path), engine="in-process")
    tried: list[int] = []

    def attempt(config: RunConfig, **options: object) -> int:
        tried.append(config.batch_size)
        if config.batch_size == 512 and len(tried) < 4:
            return ExitStatus.FAILED
        folder = run_path(config)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"final": {"val_accuracy": 0.5}}))
        return ExitStatus.FINISHED

    monkeypatch.setattr(searching, "preflight", lambda *arguments, **options: None)
    monkeypatch.setattr(searching, "attempt", attempt)
    ended = [
        Study(config, "a", {"batch-size": [512, 32]}).run(2, 0, client_cpus=1, client_gpus=None)
        for _ in range(3)
    ]
    assert tried == [512, 32, 512, 512]  # the others first, and it again after them
    assert ended == [ExitStatus.FAILED, ExitStatus.FAILED, ExitStatus.FINISHED]


def test_ctrl_c_in_the_last_round_of_a_trial_starts_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ctrl_c_after(monkeypatch, lambda row: (row.phase, row.round) == ("train", 4))
    assert main(arguments(tmp_path, 2)) == ExitStatus.INTERRUPTED
    said = capsys.readouterr().out
    assert said.count("trial ") == 1 and "interrupted; to continue: " in said
    assert main(arguments(tmp_path, 1)) == ExitStatus.FINISHED  # it was finished all the same
    assert "trial 0" not in capsys.readouterr().out


def test_a_search_goes_on_with_the_weights_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(b"first")
    config = RunConfig(
        name="a", results_dir=str(tmp_path), engine="in-process", weights=str(weights)
    )

    def attempt(config: RunConfig, **options: object) -> int:
        folder = run_path(config)
        folder.mkdir(parents=True)
        known = {"weights-file-sha256": file_sha256(weights)}
        summary = {"final": {"val_accuracy": 0.5}, "identity": known}
        (folder / "summary.json").write_text(json.dumps(summary))
        return ExitStatus.FINISHED

    monkeypatch.setattr(searching, "preflight", lambda *arguments, **options: None)
    monkeypatch.setattr(searching, "attempt", attempt)
    search = Study(config, "a", {"lr": [0.1, 0.2]})
    assert search.run(1, 0, client_cpus=1, client_gpus=None) == ExitStatus.FINISHED
    weights.write_bytes(b"second")
    again = Study(config, "a", {"lr": [0.1, 0.2]})
    for trials in (1, 2):  # those that are done do not count either
        with pytest.raises(ConfigError, match=r"was run with other weights than .*--name NAME"):
            again.run(trials, 0, client_cpus=1, client_gpus=None)


def test_a_record_names_the_code_of_its_trials(
    tmp_path: Path, better: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def facts(commit: str, *changed: str) -> None:
        found = {"sha256": "0", "commit": commit, "changed": list(changed), "parts": {}}
        monkeypatch.setattr(session, "code_facts", lambda config: found)

    facts("first", "fedta_app/config.py")
    assert main(arguments(tmp_path, 1)) == ExitStatus.FINISHED
    path = tmp_path / "results/tuning/smoke-random-iid/search.toml"
    facts("second")
    assert main(arguments(tmp_path, 1)) == ExitStatus.FINISHED
    assert read_toml(path)["commit"] == "first"
    assert read_toml(path)["not-committed"] == ["fedta_app/config.py"]
    assert main(arguments(tmp_path, 2)) == ExitStatus.FINISHED
    assert read_toml(path)["commit"] == "first, second"


def test_a_damaged_study_is_named_in_one_sentence(
    tmp_path: Path, better: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, 1)) == ExitStatus.FINISHED
    (path,) = (tmp_path / "runs/tune").rglob("study.db")
    path.write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    capsys.readouterr()
    assert main(arguments(tmp_path, 2)) == ExitStatus.REFUSED
    said = capsys.readouterr().err
    assert f"error: {path} cannot be used" in said and "Traceback" not in said
    path.unlink()
    assert main(arguments(tmp_path, 1)) == ExitStatus.FINISHED


@pytest.mark.parametrize("status", [ExitStatus.FAILED, ExitStatus.STOPPED])
def test_a_trial_that_could_not_run_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    config = RunConfig(name="a", results_dir=str(tmp_path), engine="in-process")
    monkeypatch.setattr(searching, "preflight", lambda *arguments, **options: None)
    monkeypatch.setattr(searching, "attempt", lambda *arguments, **options: status)
    study = Study(config, "a", {"lr": [0.1, 0.2]})
    assert study.run(2, 0, client_cpus=1, client_gpus=None) == status
    assert not study._done()


def test_a_run_that_diverged_is_the_worst_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(config: RunConfig, **options: object) -> int:
        reason = "RunError: training diverged in round 1 (loss nan): lower lr, or clip"
        folder = run_path(config)
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"status": "failed", "reason": reason}))
        return ExitStatus.FAILED

    config = RunConfig(name="a", results_dir=str(tmp_path), engine="in-process")
    monkeypatch.setattr(searching, "preflight", lambda *arguments, **options: None)
    monkeypatch.setattr(searching, "attempt", attempt)
    study = Study(config, "a", {"strategy": ["fedavg", "ties"]})
    assert study.run(2, 0, client_cpus=1, client_gpus=None) == ExitStatus.FINISHED
    assert [trial["val accuracy"] for trial in study.chosen().trials] == [0.0, 0.0]


def test_a_space_is_checked() -> None:
    check_space({"lr": {"low": 0.1, "high": 1.0}, "clip-norm": [0.0, 1.0]})
    for space in ({"lr": {"low": 0.1}}, {"lr": []}, {"lrr": [1]}, {"lr": 3}):
        with pytest.raises(ConfigError, match=r"\[tune\] lr"):
            check_space(space)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"lr": [0.1, -1]}, "lr = -1 is not allowed: lr is a number above 0"),
        ({"lr": {"low": "a", "high": 0.1}}, "lr = 'a' is not allowed"),
        ({"lr": {"low": 0.3, "high": 0.1}}, "low is above 0 and below high"),
        ({"clip-norm": {"low": 0.0, "high": 0.1}}, "clip-norm = .* low is above 0 and below high"),
        ({"local-steps": {"low": 1, "high": 4}}, "local-steps takes a list of values"),
        ({"data-dir": ["a", "b"]}, "data-dir is not searched: it decides nothing of the result"),
        ({"head": ["ridge", "random"]}, "mask-rule = 'random' is not allowed with head = 'random'"),
    ],
)
def test_a_value_that_no_trial_could_run_with_is_refused_before_any(
    tmp_path: Path, space: Space, sentence: str
) -> None:
    values = {"mask-rule": "random", "head": "ridge", "results-dir": str(tmp_path)}
    with pytest.raises(ConfigError, match=sentence):
        Study(RunConfig.from_mapping({"name": "a", **values}), "a", space)
    assert not (tmp_path / "tune").exists()


def test_a_trial_has_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def attempt(config: RunConfig, **options: object) -> int:
        given.append(config.max_minutes)
        return ExitStatus.STOPPED

    config = RunConfig(name="a", results_dir=str(tmp_path), engine="in-process")
    monkeypatch.setattr(searching, "preflight", lambda *arguments, **options: None)
    monkeypatch.setattr(searching, "attempt", attempt)
    for minutes in (30.0, 0.0):
        status = Study(config, "a", {"lr": [0.1]}).run(1, minutes, client_cpus=1, client_gpus=None)
        assert status == ExitStatus.STOPPED
    assert 29 < given[0] <= 30 and given[1] == 0


def test_a_search_of_another_key_keeps_what_was_found(tuned: Path) -> None:
    write_choice("smoke", "", "random-*", {"server-lr": 0.3})
    before = presets.load_table("smoke")
    write_choice("smoke", "", "random-*", {"lr": 0.5})
    assert read_toml(tuned) == {"random-*": {"server-lr": 0.3, "lr": 0.5}}
    tuned.write_text('["random-*"]\nlr = 0.5\n')
    gone = changed_presets(before, presets.load_table("smoke"))
    assert gone and all("server-lr is no longer set" in line for line in gone)


def test_one_preset_is_tuned_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "smoke", "--results-dir", str(tmp_path)]) == ExitStatus.REFUSED
    said = capsys.readouterr().err
    assert "'smoke' names 4 presets, and tune takes one preset, such as smoke/" in said
    assert "; --for PATTERN gives its choice to others" in said
    assert main(arguments(tmp_path, 1, "--for", "dense-*")) == ExitStatus.REFUSED
    assert "--for: 'dense-*' matches no preset of the table" in capsys.readouterr().err


def test_a_search_that_runs_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second one would take the trial that the first one runs for a killed search's."""
    monkeypatch.setattr("fedta_app.runs.directory._LOCK_PATIENCE", 0.1)
    place = tmp_path / "runs/tune/smoke/random-iid"
    place.mkdir(parents=True)
    with started_once(place):
        assert main(arguments(tmp_path, 1)) != ExitStatus.FINISHED
    assert "random-iid is in use by another process" in capsys.readouterr().err
    assert not (place / "study.db").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '["leasst-*"]\nlr = 1.0',
            "'leasst-*' matches no preset of the table; did you mean least-",
        ),
        ("lr = 1.0", "lr = 1.0 is not allowed outside of a section"),
    ],
)
def test_choices_for_no_preset_are_refused(tuned: Path, text: str, sentence: str) -> None:
    tuned.write_text(text)
    with pytest.raises(ConfigError) as caught:
        presets.load_table("smoke")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("more", "name", "overrides"),
    [
        (["--set", "num-server-rounds=2"], "num-server-rounds=2", {"num-server-rounds": 2}),
        (["--set", "num-server-rounds=2", "--name", "short"], "short", {"num-server-rounds": 2}),
        (["--name", "mine"], "mine", {}),
    ],
)
def test_a_search_under_overrides_has_a_name_of_its_own(
    tmp_path: Path, tuned: Path, better: None, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, more: list[str], name: str, overrides: dict[str, int],
) -> None:  # fmt: skip
    monkeypatch.setattr(Study, "run", lambda *arguments, **options: ExitStatus.FINISHED)
    found = Chosen({"lr": 0.1}, 0.9, 0.8, [{"lr": 0.1, "val accuracy": 0.9, "state": "complete"}])
    monkeypatch.setattr(Study, "chosen", lambda study: found)
    assert main(arguments(tmp_path, 1, "--for", "random-*", *more)) == ExitStatus.FINISHED
    assert not tuned.exists()
    printed = capsys.readouterr().out
    assert f"no preset takes these values: the search has a name of its own, {name}" in printed
    assert printed.endswith('["random-*"]\nlr = 0.1\n')
    record = read_toml(tmp_path / f"results/tuning/smoke-random-iid-{name}/search.toml")
    assert record["overrides"] == overrides and name in record["not-written-because"]


def test_keys_that_do_not_decide_the_search_give_it_no_name(
    tmp_path: Path, tuned: Path, better: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Study, "run", lambda *arguments, **options: ExitStatus.FINISHED)
    found = Chosen({"lr": 0.1}, 0.9, 0.8, [{"lr": 0.1, "val accuracy": 0.9, "state": "complete"}])
    monkeypatch.setattr(Study, "chosen", lambda study: found)
    more = ["--set", "seed=100", "--set", "threads=2", "--set", "lr=0.5", "--device", "cpu"]
    assert main(arguments(tmp_path, 1, *more)) == ExitStatus.FINISHED
    assert read_toml(tuned) == {"random-iid": {"lr": 0.1}}


@pytest.mark.parametrize("start", [0.9, 0.95, None])
def test_a_best_trial_that_is_no_better_than_no_training_is_said(
    tmp_path: Path, tuned: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, start: float | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(Study, "run", lambda *arguments, **options: ExitStatus.FINISHED)
    trials = [{"lr": 0.1, "val accuracy": 0.9, "state": "complete"}]
    monkeypatch.setattr(Study, "chosen", lambda study: Chosen({"lr": 0.1}, 0.9, start, trials))
    assert main(arguments(tmp_path, 1)) == ExitStatus.FINISHED
    assert not tuned.exists()
    said = "the best trial is no better than no training"
    assert said in capsys.readouterr().out
    record = read_toml(tmp_path / "results/tuning/smoke-random-iid/search.toml")
    assert record["not-written-because"].startswith(said)


def test_the_start_is_that_of_the_best_trial(tmp_path: Path) -> None:
    config = RunConfig(name="a", results_dir=str(tmp_path), engine="in-process")
    study = Study(config, "a", {"lr": [0.1, 0.2]})
    for accuracy in (0.5, 0.7):
        trial = study._study.ask()
        values = suggest(trial, {"lr": [0.1, 0.2]})
        folder = run_path(study._config_of(values))
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "metrics.csv", [Row(0, "start", val_accuracy=accuracy - 0.1)])
        study._study.tell(trial, accuracy)
    assert study.chosen().start == pytest.approx(0.6) and study.chosen().trained
