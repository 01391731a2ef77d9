"""Records of real runs: what is damaged, or is another run, and what stays of earlier records."""

from pathlib import Path
from shutil import copy

import pytest
from safetensors.torch import load_file, save_file

from experiments.__main__ import main
from experiments.exit_status import ExitStatus

COMMITTED = Path(__file__).parents[3] / "fedta_app/weights/vit_digits.safetensors"
QUICK = {
    "num-server-rounds": 1, "num-clients": 10, "calibration-rounds": 1, "local-steps": 1,
    "eval-size": 100, "eval-every": 1,
}  # fmt: skip


def cells(command: str, folder: Path, *more: str, **keys: object) -> int:
    """Run a command on the first preset of the table smoke, in one process."""
    sets = [f"--set={key}={value}" for key, value in {**QUICK, **keys}.items()]
    places = ["--results-dir", str(folder / "runs")]
    places += ["--out", str(folder / "records")] if command == "collect" else []
    if command == "run":
        places += ["--engine", "in-process"]
    return main([command, "smoke/least-iid", *places, *sets, *more])


def record(folder: Path, seed: int) -> dict[str, bytes]:
    files = sorted((folder / f"records/smoke/cells/least-iid/seed{seed}").glob("*"))
    return {file.name: file.read_bytes() for file in files}


def test_what_cannot_be_kept_costs_neither_its_earlier_record_nor_the_cells_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"mask-scope": "client"}
    assert cells("run", tmp_path, **own) == ExitStatus.FINISHED
    assert cells("collect", tmp_path, **own) == ExitStatus.FINISHED
    kept = [record(tmp_path, seed) for seed in (0, 1)]
    assert {"summary.json", "config.toml", "metrics.csv", "mask.bits"} <= kept[0].keys()
    for blob in (tmp_path / "runs/smoke/least-iid/seed0/blobs").iterdir():
        blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:])
    for file in (tmp_path / "records/smoke/cells/least-iid/seed1").iterdir():
        file.unlink()
    capsys.readouterr()
    assert cells("collect", tmp_path, **own) == ExitStatus.REFUSED
    said = capsys.readouterr()
    assert said.err.startswith("error: smoke/least-iid seed 0: ") and "is damaged" in said.err
    assert "1 of 2 cells are finished, and kept in" in said.out
    assert [record(tmp_path, seed) for seed in (0, 1)] == kept


def test_a_run_with_other_weights_is_not_the_run_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "a b/w.safetensors", tmp_path / "two/w.safetensors"
    for path in (one, two):
        path.parent.mkdir()
    copy(COMMITTED, one)
    save_file({name: 1.01 * tensor for name, tensor in load_file(COMMITTED).items()}, two)
    asked = ["--seeds", "1"]
    assert cells("run", tmp_path, *asked, weights=one) == ExitStatus.FINISHED
    assert cells("run", tmp_path, *asked, weights=one) == ExitStatus.FINISHED
    assert "finished before" in capsys.readouterr().out
    for command in ("run", "collect"):
        assert cells(command, tmp_path, *asked, weights=two) == ExitStatus.REFUSED
        said = capsys.readouterr().err
        assert f"was run with other weights than {two} holds (sha256 " in said
        assert "Traceback" not in said
    moved = tmp_path / "three/w.safetensors"
    moved.parent.mkdir()
    copy(one, moved)  # the same weights, elsewhere
    assert cells("run", tmp_path, *asked, weights=moved) == ExitStatus.FINISHED
    assert cells("collect", tmp_path, *asked, weights=moved) == ExitStatus.FINISHED
    text = b"".join(record(tmp_path, 0).values()).decode(errors="ignore")
    assert "w.safetensors" in text and "a b" not in text and str(tmp_path) not in text


def test_runs_of_another_machine_are_collected_with_the_data_and_weights_of_this_one(
    tmp_path: Path,
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        (folder / "data").mkdir(parents=True)
    copy(COMMITTED, there / "w.safetensors")
    elsewhere = {"weights": there / "w.safetensors", "cache-dir": there / "cache"}
    asked = ["--seeds", "1", "--data-dir"]
    assert cells("run", tmp_path, *asked, str(there / "data"), **elsewhere) == ExitStatus.FINISHED
    there.rename(here / "moved")
    there.write_text("no folder: what is asked for in it is refused")
    own = {"weights": here / "moved/w.safetensors", "cache-dir": here / "cache"}
    assert cells("collect", tmp_path, *asked, str(here / "data"), **own) == ExitStatus.FINISHED
    assert record(tmp_path, 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--results-dir", ""], "--results-dir '' is not allowed: it names no folder"),
        (["--name", ""], "is not allowed: name is letters, digits"),
        (["--set", "lr=0.1", "--set", "lr=0.3"], "lr is given twice, as 0.1 and 0.3: give one"),
        (
            ["--engine", "in-process", "--set", "engine=flower"],
            "--set engine=flower is not allowed with another option for engine",
        ),
    ],
)
def test_options_that_say_nothing_or_two_things_are_refused(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "smoke", *options]) == ExitStatus.REFUSED
    assert sentence in capsys.readouterr().err
