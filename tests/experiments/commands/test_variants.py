"""Variants of a preset: a name of their own, a comparison, and what `collect` says of them."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.reporting.comparison import curves_figure
from experiments.reporting.frames import print_comparisons
from experiments.reporting.records import RecordError
from experiments.reporting.variants import (
    config_frame,
    differences_frame,
    figures_frame,
    find_variants,
)
from experiments.running.cells import finished_folders, make_cells
from experiments.running.presets import select
from fedta_app.config import RunConfig, to_toml
from fedta_app.runs.metrics import Row, write_csv

QUICK = ["--set", "num-server-rounds=1", "--set", "num-clients=10", "--seeds", "1"]
AT_ONCE = ["--max-minutes", "1e-9"]


def write(results: Path, name: str, seed: int, accuracy: float, **changes: Any) -> Path:
    """Write the directory of a run that was never run."""
    folder = results / name / f"seed{seed}"
    folder.mkdir(parents=True)
    status, data = changes.pop("status", "finished"), changes.pop("data", "d")
    kind = changes.pop("kind", "file")
    identity = {"data-sha256": data, "weights-file-sha256": changes.pop("file", "f" * 64)}
    sha256 = changes.pop("sha256", f"{name} {seed}")
    config = RunConfig.from_mapping({"name": name, "seed": seed, "num-server-rounds": 4, **changes})
    (folder / "config.toml").write_text(to_toml(config))
    rows = [
        Row(0, "start", val_accuracy=0.1, test_accuracy=0.1),
        Row(2, "train", 2.0, 0.9, 0.9, 0.4),
        Row(4, "train", 1.0, accuracy, accuracy, 0.4),
    ]
    write_csv(folder / "metrics.csv", rows)
    code = {"sha256": "c", "commit": "0123456789", "parts": {"shared": "s"}}
    summary = {
        "status": status, "bytes-up": 1e6, "bytes-down": 2e6, "identity": identity,
        "weights": {"kind": kind},
        "code": code, "sessions": [{"seconds": 1, "code": code}], "device": "cpu",
        "versions": {"torch": "2"}, "final-weights-sha256": sha256,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_name_gives_variants_directories_of_their_own() -> None:
    _, both = select("demo/[fm]*")
    paths = [cell.path for cell in make_cells(both, {"results-dir": "/r"}, 2, "mine")]
    assert [str(path) for path in paths] == [
        "/r/mine/fedavg/seed0", "/r/mine/fedavg/seed1", "/r/mine/masked/seed0",
        "/r/mine/masked/seed1",
    ]  # fmt: skip
    _, one = select("demo/masked")
    (cell,) = make_cells(one, {"results-dir": "/r"}, 1, "mine")
    assert str(cell.path) == "/r/mine/seed0" and not cell.own_name


def test_two_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "demo/masked", "--name", "a", "--set", "name=b"]
    assert main(arguments) == ExitStatus.REFUSED
    assert "--set name=b is not allowed with another option for name" in capsys.readouterr().err
    assert main(["run", "demo/masked", "--name", "../a"]) == ExitStatus.REFUSED
    assert "name = '../a' is not allowed" in capsys.readouterr().err


def test_a_variant_does_not_meet_the_presets_own_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ["--results-dir", str(tmp_path / "my runs")]
    common = ["smoke/random-iid", "--engine", "in-process", *QUICK, *results]
    fast = [*common, "--set", "lr=0.3"]
    assert main(["run", *common, *AT_ONCE]) == ExitStatus.STOPPED
    assert main(["run", *fast]) == ExitStatus.REFUSED  # the collision, and the way out of it
    error = capsys.readouterr().err
    assert "another configuration (lr: 0.05 -> 0.3)" in error and "--name NAME" in error
    named = ["run", *fast, "--name", "fast"]
    assert main([*named, *AT_ONCE]) == ExitStatus.STOPPED
    printed = capsys.readouterr().out
    typed = shlex.join(["python", "-m", "experiments", *named, *AT_ONCE])
    assert f"to continue: {typed}\n" in printed and "'" in typed
    assert main(named) == ExitStatus.FINISHED
    capsys.readouterr()
    assert main(named) == ExitStatus.FINISHED
    typed = shlex.join(["python", "-m", "experiments", *named])
    assert capsys.readouterr().out == (
        f"finished before: {tmp_path}/my runs/fast/seed0; to start it over: {typed} --no-resume\n"
    )
    out = ["--out", str(tmp_path / "compared")]
    assert main(["compare", "smoke/random-iid", "fast", *results, *out]) == ExitStatus.FINISHED
    printed = capsys.readouterr().out
    assert "What differs in the configurations:" in printed and " lr " in printed
    assert {path.name for path in (tmp_path / "compared").iterdir()} == {
        "comparison.md", "curves.png", "curves.svg", "figures.csv"
    }  # fmt: skip
    page = (tmp_path / "compared/comparison.md").read_text()
    assert "| lr | 0.05 | 0.3 |" in page and "share no seed that both finished" in page
    assert shlex.join(["compare", "smoke/random-iid", "fast", *results, *out]) in page


def test_seeds_that_pair_up_have_an_interval(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.90, 0.92, 0.94)):
        write(tmp_path, "base", seed, accuracy)
        write(tmp_path, "a/fast", seed, accuracy + 0.01 * seed, lr=0.5)
    write(tmp_path, "a/fast", 3, 0.1, lr=0.5)  # without a partner
    variants = find_variants(["base", "a/fast"], tmp_path)
    frame, notes = differences_frame(variants)
    (row,) = frame.to_dict("records")
    assert (row["run"], row["against"], row["seeds"]) == ("a/fast", "base", 3)
    # differences of 0, 1 and 2 points: standard deviation 0.01, t(0.975; 2) = 4.30265, by sqrt(3)
    assert row["difference"] == pytest.approx(0.01)
    assert row["± (95 %)"] == pytest.approx(4.30265 * 0.01 / 3**0.5, rel=1e-5)
    assert row["verdict"] == "cannot be told" and "paired by seed" in notes[-1]
    # Of two runs the family is one: a true difference of what the interval spans is told in half of
    # such experiments, and four times in five it takes a third more.
    assert row["detectable"] == pytest.approx(1.31 * row["± (95 %)"], rel=0.01)
    assert print_comparisons(frame)["difference"].tolist() == ["+1.0 ± 2.5"]
    figures = figures_frame(variants).to_dict("records")
    assert figures[0]["test, %"] == "92.0 ± 5.0" and figures[1]["seeds"] == "0, 1, 2, 3"
    assert figures[0]["best validation, %"] == "92.0 ± 5.0"  # of seeds: 0.9, 0.92, 0.94
    assert figures[0]["round 0, %"] == "10.0 ± 0.0" and figures[0]["MB moved"] == "3"


def test_only_finished_runs_on_the_same_data_are_held_against_each_other(tmp_path: Path) -> None:
    write(tmp_path, "base", 0, 0.9)
    write(tmp_path, "stopped", 0, 0.5, status="stopped")
    write(tmp_path, "other", 0, 0.5, data="e")
    variants = find_variants(["base", "stopped", "other"], tmp_path)
    frame, notes = differences_frame(variants)
    assert frame.empty
    assert [note.split(" share no seed")[0] for note in notes[:2]] == [
        "stopped and base", "other and base"
    ]  # fmt: skip
    assert figures_frame(variants)["state"].tolist() == ["finished", "stopped", "finished"]


def test_a_variant_that_changed_nothing_is_said(tmp_path: Path) -> None:
    write(tmp_path, "base", 0, 0.9, sha256="w")
    write(tmp_path, "idle", 0, 0.9, sha256="w", lr=0.5)
    write(tmp_path, "other", 0, 0.9, lr=0.6)
    _, notes = differences_frame(find_variants(["base", "idle", "other"], tmp_path))
    assert [note for note in notes if "equal weights" in note] == [
        "idle and base end with equal weights: what differs in their configurations did nothing"
    ]


def test_keys_differ_where_something_reads_them(tmp_path: Path) -> None:
    write(tmp_path, "dense", 0, 0.9, head="ridge")
    masked = {"head": "ridge", "mask-rule": "least-sensitive", "device": "cpu"}
    write(tmp_path, "least", 0, 0.9, **masked)
    write(tmp_path, "more", 0, 0.9, **masked | {"sparsity": 0.5})
    write(tmp_path, "central", 0, 0.9, head="ridge", engine="centralized")
    frame = config_frame(find_variants(["dense", "least", "more", "central"], tmp_path))
    rows = frame.set_index("key").to_dict("index")
    assert set(rows) == {"sparsity", "centralised"} | {"mask-rule"}
    assert list(rows["sparsity"].values()) == ["not read", "0.9", "0.5", "not read"]
    assert list(rows["centralised"].values()) == ["False", "False", "False", "True"]


def test_weights_that_runs_began_from_are_compared_too(tmp_path: Path) -> None:
    write(tmp_path, "a", 0, 0.9)
    write(tmp_path, "b", 0, 0.9, file="e" * 64)
    (row,) = config_frame(find_variants(["a", "b"], tmp_path)).to_dict("records")
    assert row == {"key": "weights, by sha256", "a": "f" * 12, "b": "e" * 12}
    write(tmp_path, "a", 1, 0.9, file="e" * 64)
    with pytest.raises(RecordError, match="differ in weights, by sha256"):
        find_variants(["a", "b"], tmp_path)
    for seed in (0, 1):  # weights that are drawn differ from seed to seed
        write(tmp_path, "c", seed, 0.9, file=f"{seed}" * 64, kind="random")
    find_variants(["b", "c"], tmp_path)


def test_lines_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.5, 0.7)):
        write(tmp_path, "base", seed, accuracy)
    write(tmp_path, "other", 0, 0.3)
    figure = curves_figure(find_variants(["base", "other"], tmp_path))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["validation accuracy", "test accuracy", "training loss"]
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["base", "other"]
    assert list(lines[0].get_xdata()) == [0, 2, 4]
    assert list(lines[0].get_ydata()) == pytest.approx([0.1, 0.9, 0.6])


def test_epochs_of_a_centralised_run_are_not_called_rounds(tmp_path: Path) -> None:
    for name in ("base", "other"):
        write(tmp_path, name, 0, 0.5, **{"engine": "centralized", "local-steps": 0})
    figure = curves_figure(find_variants(["base", "other"], tmp_path))
    assert {axis.get_xlabel() for axis in figure.axes} == {"epoch"}


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        (["base", "nowhere"], "nowhere does not exist, nor does {}/nowhere; runs in {}: {}/base, "),
        (["base", "x"], "x is no run; runs in {}/x: {}/x/one, {}/x/two"),
        (["base", "base"], "a run is named twice: base, base"),
        (["base", "mixed"], "the seeds in {}/mixed differ in lr: name the run directories"),
        (["base"], "compare takes at least two runs"),
    ],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: list[str], sentence: str
) -> None:
    for name in ("base", "x/one", "x/two"):
        write(tmp_path, name, 0, 0.9)
    write(tmp_path, "mixed", 0, 0.9)
    write(tmp_path, "mixed", 1, 0.9, lr=0.5)
    arguments = ["compare", *named, "--results-dir", str(tmp_path)]
    assert main(arguments) == ExitStatus.REFUSED
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and sentence.replace("{}", str(tmp_path)) in error


def test_seeds_of_one_run_can_be_compared(tmp_path: Path) -> None:
    folders = [str(write(tmp_path, "base", seed, 0.9)) for seed in (0, 1)]
    assert [variant.name for variant in find_variants(folders, tmp_path)] == folders


def test_runs_are_found_at_any_depth_but_not_trials(tmp_path: Path) -> None:
    names = ["a", "b/c", "d/e/f"]
    for name in names:
        write(tmp_path, name, 0, 0.9)
    write(tmp_path, "b/c", 1, 0.9, status="stopped")
    aside = tmp_path / "a/seed0.old-1"
    write(tmp_path, "moved", 0, 0.9).rename(aside)
    found = [str(folder.relative_to(tmp_path)) for folder in finished_folders(tmp_path)]
    assert found == [f"{name}/seed0" for name in names]


def preset_run(
    results: Path, name: str, preset: str, status: str = "finished", **more: Any
) -> None:
    _, (chosen,) = select(f"smoke/{preset}")
    write(results, name, more.pop("seed", 0), 0.9, status=status, **chosen.values | more)


def test_collect_says_why_it_found_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "my runs"
    arguments = ["smoke", "--results-dir", str(runs)]
    collect = ["collect", *arguments, "--out", str(tmp_path / "out")]
    assert main(collect) == ExitStatus.FAILED
    command = shlex.join(["python", "-m", "experiments", "run", *arguments])
    assert capsys.readouterr().out == (
        f"none of 8 cells is finished, and nothing was written to {tmp_path}/out\n"
        f"missing from {runs}:\n  none of them was run there\nto run what is missing: {command}\n"
    )
    preset_run(runs, "smoke/least-iid", "least-iid", "stopped")
    preset_run(runs, "smoke/random-iid", "random-iid", lr=0.5)
    preset_run(runs, "fast", "least-nc1", lr=0.2, seed=1)
    preset_run(runs, "v/random-nc1", "random-nc1", lr=0.3)
    assert main(collect) == ExitStatus.FAILED
    *lines, advice = capsys.readouterr().out.splitlines()[2:]
    assert advice == "to keep runs with other settings: collect with the same --set options"
    assert lines == [
        "  smoke/least-iid seed 0: interrupted at train round 4",
        "  smoke/least-iid seed 1: not run",
        "  smoke/least-nc1 seed 0: not run",
        f"  smoke/least-nc1 seed 1: not run, but with lr = 0.2: {runs}/fast/seed1",
        f"  smoke/random-iid seed 0: not run, but with lr = 0.5: {runs}/smoke/random-iid/seed0",
        "  smoke/random-iid seed 1: not run",
        f"  smoke/random-nc1 seed 0: not run, but with lr = 0.3: {runs}/v/random-nc1/seed0",
        "  smoke/random-nc1 seed 1: not run",
    ]
