"""`python -m experiments`, as a user types it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.running.presets import load_table, parse_overrides, select, tables
from fedta_app.cache import ArrayCache
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from tests.experiments.interrupting import ctrl_c_after

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--set", "num-server-rounds=2", "--set", "eval-size=50", "--set", "local-steps=1"]


def test_every_preset_is_a_valid_configuration() -> None:
    for table in tables():
        for preset in load_table(table).presets:
            preset.config({})


def test_list_shows_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == ExitStatus.FINISHED
    output = capsys.readouterr().out
    for table in tables():
        for preset in load_table(table).presets:
            assert preset.label in output


def test_list_shows_one_table_or_some_of_its_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "smoke"]) == ExitStatus.FINISHED
    table = load_table("smoke")
    labels = [f"  {preset.label}" for preset in table.presets]
    assert capsys.readouterr().out.splitlines() == [f"smoke: {table.question}", *labels]
    assert main(["list", "heterogeneity/nc5-*", "--scale", "small"]) == ExitStatus.FINISHED
    (_, *lines) = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("  heterogeneity-small/nc5-") for line in lines)


def test_list_shows_the_keys_of_a_preset_that_are_not_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = ["list", "mask-rules/least-nc5-frozen", "--scale", "small"]
    assert main([*named, "--set", "lr=0.5"]) == ExitStatus.FINISHED
    found = tomllib.loads(capsys.readouterr().out)
    _, (preset,) = select("mask-rules/least-nc5-frozen", "small")
    config = preset.config({"lr": 0.5})
    assert found["lr"] == 0.5 and found["name"] == "mask-rules-small/least-nc5-frozen"
    assert RunConfig.from_mapping(found) == config
    defaults = RunConfig().to_mapping()
    assert all(found[key] != defaults[key] for key in found)


def test_a_reader_that_has_enough_gets_no_traceback() -> None:
    command = [sys.executable, "-m", "experiments", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_overrides_are_toml_or_plain_words() -> None:
    pairs = ["lr=0.5", "resume=false", "name=a/b", 'model="cnn"', "seed = 3"]
    assert parse_overrides(pairs) == {
        "lr": 0.5, "resume": False, "name": "a/b", "model": "cnn", "seed": 3
    }  # fmt: skip
    assert parse_overrides(["sensitivity-labels=true", "augment=true"]) == {
        "sensitivity-labels": "true", "augment": True
    }  # fmt: skip
    with pytest.raises(ConfigError, match="write key=value"):
        parse_overrides(["lr"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "nowhere"], "there is no table 'nowhere'; tables are: "),
        (["run", "demo/nothing"], "table 'demo' has no preset 'nothing'; its presets are: "),
        (["list", "smoke", "--set", "lr=1"], "list takes --set where it shows one preset"),
        (["run", "dem"], "there is no table 'dem'; did you mean demo?"),
        (["run", "demo/mask"], "table 'demo' has no preset 'mask'; did you mean masked?"),
        (["tune", "demo/masked", "--for", "ridg"], "of the table; did you mean ridge?"),
        (["run", "demo", "--set", "strategy=fedporx"], "; did you mean fedprox?"),
        (["run", "demo", "--set", "mask-rule=least"], "; did you mean least-sensitive"),
        (["run", "demo", "--set", "lrr=1"], "did you mean lr?"),
        (["run", "demo", "--set", "lr=-1"], "lr = -1 is not allowed"),
        (["run", "demo", "--set", "weights=/nowhere.pth"], "/nowhere.pth"),
        (["run", "demo", "--set", "image-size=7"], "image-size"),
        (["run", "demo", "--set", "model=vit_digit"], "vit_digit"),
        (["run", "demo", "--set", "num-clients=0"], "num-clients = 0 is not allowed here"),
        (["plan", "demo", "--set", "num-clients=0"], "num-clients = 0 is not allowed here"),
        (["run", "demo", "--set", "num-clients=100000"], "num-clients must be an integer between"),
        (["run", "demo", "--set", "val-size=1e-5"], "val-size must be between 0 and 1"),
        (
            ["run", "demo", "--set", "dirichlet-alpha=1e9"],
            "dirichlet-alpha = 1000000000.0 is not allowed: dirichlet-alpha is a number from 1e-06",
        ),
        (["run", "demo", "--set", f"lr={'9' * 400}"], "(400 characters) is not allowed: lr is fin"),
        (
            ["plan", "demo", "--set", f"lr={'9' * 400}"],
            "(400 characters) is not allowed: lr is fin",
        ),
        (["tune", "demo/fedavg", "--set", f"lr={'9' * 5000}"], "characters) is not allowed: lr is"),
        (["run", "demo", "--set", "lr=nan"], "lr = nan is not allowed: lr is finite, a number"),
        (["run", "demo", "--set", "local-steps=true"], "local-steps = True is not allowed"),
        (["run", "demo", "--set", "learning-rate=1"], "; did you mean lr?"),
        (["run", "demo", "--device", "tpu"], "device = 'tpu' is not allowed: device is auto, cpu,"),
        (["plan", "demo", "--device", "mps"], "device = 'mps' is not allowed: device is auto, cpu"),
        (["plan", "demo", "--device", "cuda:77"], "device = 'cuda:77' is not allowed"),
        (["run", "digits/centralized", "--device", "cuda:" + 30 * "7"], "is not allowed: this mac"),
        (["run", "demo", "--device", "cuda:77"], "device = 'cuda:77' is not allowed"),
        (
            ["run", "demo", "--seeds", "0"],
            "--seeds 0 is not allowed: it is a whole number",
        ),
        (["run", "demo", "--set", "name=same"], "two runs would share one run directory"),
        (["run", "smoke", "--set", "mask-rule=random"], "would be the same run"),
        (
            ["run", "demo", "--max-minutes", "0"],
            "--max-minutes 0 is not allowed: it is a finite",
        ),
        (
            ["run", "demo", "--max-minutes", "inf"],
            "--max-minutes inf is not allowed: it is a finite",
        ),
        (["run", "demo", "--client-gpus", "0.25"], "torch finds no CUDA GPU on this machine"),
        (["run", "demo", "--results-dir", "/proc/nothing"], "cannot be written to"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_status(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "--results-dir" not in arguments and arguments[0] != "list":
        arguments = [*arguments, "--results-dir", str(tmp_path)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(arguments) == ExitStatus.REFUSED
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sentence in error


def test_a_missing_data_set_is_refused_with_the_place_for_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedta_app.data.loading.download_cifar100", _no_network, raising=False)
    arguments = ["run", "small/fedavg-iid", "--data-dir", str(tmp_path / "none")]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "cifar-100-python.tar.gz").write_bytes(b"cut off")
    assert main([*arguments, "--results-dir", str(tmp_path)]) == ExitStatus.REFUSED
    assert str(tmp_path / "none") in capsys.readouterr().err


def _no_network(*arguments: object) -> None:
    raise OSError("no network")


def test_in_process_and_centralised_runs_end_with_their_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*QUICK, "--results-dir", str(tmp_path)]
    assert main(["run", "demo/fedavg", "--engine", "in-process", *common]) == ExitStatus.FINISHED
    assert main(["run", "digits/centralized", *common]) == ExitStatus.FINISHED
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"run directory: {tmp_path}/digits/centralized/seed0"


def test_a_run_out_of_time_has_a_status_of_its_own(tmp_path: Path) -> None:
    common = ["--engine", "in-process", *QUICK, "--results-dir", str(tmp_path)]
    assert main(["run", "demo/fedavg", *common, "--max-minutes", "1e-9"]) == ExitStatus.STOPPED
    assert main(["run", "demo/fedavg", *common]) == ExitStatus.FINISHED


def test_seeds_make_cells_of_their_own(tmp_path: Path) -> None:
    common = ["--engine", "in-process", *QUICK, "--results-dir", str(tmp_path)]
    assert main(["run", "demo/fedavg", *common, "--seeds", "2"]) == ExitStatus.FINISHED
    assert sorted(path.name for path in (tmp_path / "demo/fedavg").iterdir()) == ["seed0", "seed1"]


def test_a_damaged_checkpoint_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--engine", "in-process", *QUICK, "--results-dir", str(tmp_path)]
    main(["run", "demo/fedavg", *common, "--max-minutes", "1e-9"])
    (weights,) = tmp_path.rglob("weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["run", "demo/fedavg", *common]) == ExitStatus.REFUSED
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert "(resume = false, or --no-resume on the command line of experiments)" in said


def test_another_configuration_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--engine", "in-process", *QUICK, "--results-dir", str(tmp_path)]
    main(["run", "demo/fedavg", *common, "--max-minutes", "1e-9"])
    capsys.readouterr()
    assert main(["run", "demo/fedavg", *common, "--set", "lr=0.01"]) == ExitStatus.REFUSED
    said = capsys.readouterr().err
    assert "another configuration (lr: 0.05 -> 0.01)" in said
    assert "(resume = false, or --no-resume on the command line of experiments)" in said


def test_a_finished_run_is_finished_as_often_as_it_is_asked(tmp_path: Path) -> None:
    common = ["--engine", "in-process", *QUICK, "--results-dir", str(tmp_path)]
    assert [main(["run", "demo/fedavg", *common]) for _ in range(5)] == [ExitStatus.FINISHED] * 5


def test_ctrl_c_ends_the_round_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["--engine", "in-process", *QUICK, "--results-dir", str(tmp_path)]
    with monkeypatch.context() as patch:
        ctrl_c_after(patch, lambda row: True)
        assert main(["run", "demo/fedavg", *common, "--seeds", "2"]) == ExitStatus.INTERRUPTED
    assert (tmp_path / "demo/fedavg/seed0/checkpoint").is_dir()
    assert not (tmp_path / "demo/fedavg/seed1/checkpoint").exists()
    assert main(["run", "demo/fedavg", *common, "--seeds", "2"]) == ExitStatus.FINISHED


def test_a_baseline_is_not_continued_as_a_federation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*QUICK, "--results-dir", str(tmp_path), "--set", "name=same"]
    assert main(["run", "digits/centralized", *common]) == ExitStatus.FINISHED
    engine = ["--set", "engine=in-process", "--set", "num-clients=20", "--set", "partition=iid"]
    capsys.readouterr()
    assert main(["run", "demo/fedavg", *common, *engine]) == ExitStatus.REFUSED
    assert "engine: 'centralized' -> 'in-process'" in capsys.readouterr().err


def test_cache_is_shown_and_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = ArrayCache(tmp_path, 1e9)
    cache.array({"kind": "tokens", "split": "val"}, (2, 3), "float32", lambda array: None)
    options = ["cache", "--cache-dir", str(tmp_path)]
    assert main(options) == ExitStatus.FINISHED
    output = capsys.readouterr().out
    assert "tokens val    2 x 3" in output and f"1 entries, 0.00 GB, kept in {tmp_path}" in output
    assert main([*options, "--clear"]) == ExitStatus.FINISHED
    assert "deleted in" in capsys.readouterr().out and not cache.entries()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list"]])
def test_help_and_list_import_nothing_slow(arguments: list[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "experiments", *arguments],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "experiments.arguments" in imported
    assert not imported & {"torch", "numpy", "pandas", "matplotlib", "flwr", "scipy", "sklearn"}
