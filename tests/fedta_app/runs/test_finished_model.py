"""The models that runs keep: the right weights, whatever breaks the run, and what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from client_app.app import app as client_app
from engine.inprocess import run_in_process
from fedta_app.centralized import run_centralized
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.finished.reading import Run, load_run
from fedta_app.models import build_model
from fedta_app.runs import finished_model
from fedta_app.runs.directory import run_path
from fedta_app.runs.finished_model import describing_keys, read_facts, read_model, write_model
from fedta_app.runs.session import RunSession
from fedta_app.training.workspace import build_workspace, shared_workspace
from fedta_app.vectors.flat import weights_sha256
from server_app.app import app as server_app

CENTRAL = {
    "name": "test", "engine": "centralized", "num-server-rounds": 4, "local-steps": 2, "lr": 0.3,
    "eval-every": 1, "eval-size": 60, "threads": 1,
}  # fmt: skip
FEDERATED = {
    **CENTRAL, "engine": "in-process", "num-clients": 8, "fraction-train": 0.5,
    "partition": "classes", "num-classes-per-client": 2, "head": "ridge", "mask-rule": "random",
}  # fmt: skip
BOTH = pytest.mark.parametrize(
    "values",
    [CENTRAL, pytest.param(FEDERATED, marks=pytest.mark.slow)],
    ids=["central", "federated"],
)


@pytest.fixture(autouse=True)
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda figure, stream, **_: None)


def train(folder: Path, values: dict[str, Any], **more: Any) -> Run:
    config = {**values, "results-dir": str(folder), **more}
    if config["engine"] == "centralized":
        shared_workspace.cache_clear()  # as in a process of its own
        run_centralized(RunConfig.from_mapping(config))
        return Run(run_path(RunConfig.from_mapping(config)))
    return run_in_process(server_app, client_app, config, int(config["num-clients"]))


def files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.path / "model").iterdir()}


def flat(run: Run, weights: str) -> torch.Tensor:
    """The weights as the run's sha256 sees them: in the order of the model, the head last."""
    tensors = load_file(run.path / f"model/{weights}.safetensors")
    own = build_workspace(run.config)
    names = [*own.weights.names, *(own.head.names if own.head else ())]
    return torch.cat([tensors[name].flatten() for name in names])


@BOTH
def test_last_is_the_end_of_the_run_and_best_the_end_of_a_shorter_one(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    run = train(tmp_path / "whole", values)
    assert weights_sha256(flat(run, "last")) == run.summary["final-weights-sha256"]
    best = run.best
    assert run.kept("best").facts["figures"]["val_accuracy"] == best["val_accuracy"]
    assert run.kept("best").facts["round"] == best["round"]
    if best["round"] == 0:
        assert weights_sha256(flat(run, "best")) == run.summary["initial-weights-sha256"]
    else:  # the learning rate is constant
        part = train(tmp_path / "part", values, **{"num-server-rounds": best["round"]})
        assert torch.equal(flat(part, "last"), flat(run, "best"))


def test_best_is_written_when_validation_improves_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def noting(path: Path, state: Any, facts: Any) -> None:
        written.append((path.stem, facts["phase"], facts["round"]))
        write_model(path, state, facts)

    monkeypatch.setattr(finished_model, "write_model", noting)
    run = train(tmp_path, CENTRAL)
    expected, highest = [], -1.0
    for _, row in run.metrics.iterrows():
        if row["val_accuracy"] > highest:
            highest = row["val_accuracy"]
            expected.append(("best", row["phase"], row["round"]))
    assert 1 < len(expected) < len(run.metrics)
    assert written == [*expected, ("last", "train", 4)]


def stop_after(session: RunSession, *arguments: Any) -> None:
    ADD(session, *arguments)
    (session.directory.path / "stop").touch()


def die_before_the_record(session: RunSession, *arguments: Any) -> None:
    """The round is lost, but its best model is already there."""
    mark = session.directory.path / f"died-{len(session.rows)}"
    if len(session.rows) in (0, 3) and not mark.exists():
        mark.touch()
        raise KeyboardInterrupt
    ADD(session, *arguments)


def die_after_the_record(session: RunSession, *arguments: Any) -> None:
    """The round is in the checkpoint: its best model is never written unless it is there."""
    ADD(session, *arguments)
    mark = session.directory.path / f"died-{len(session.rows)}"
    if not mark.exists():
        mark.touch()
        raise KeyboardInterrupt


ADD = RunSession.add


@BOTH
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(stop_after, marks=pytest.mark.slow),
        die_before_the_record,
        die_after_the_record,
    ],
)
def test_a_broken_run_keeps_the_files_of_an_unbroken_one_to_the_byte(
    tmp_path: Path,
    values: dict[str, Any],
    broken: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train(tmp_path / "whole", values)
    monkeypatch.setattr(RunSession, "add", broken)
    for _ in range(20):
        try:
            run = train(tmp_path / "broken", values)
        except KeyboardInterrupt:
            continue
        if run.status == "finished":
            break
    assert len(run.summary["sessions"]) > 1
    assert files(run) == files(whole)


def test_a_run_that_ends_between_its_last_model_and_its_summary_ends_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunSession, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", CENTRAL)
    run = train(tmp_path / "killed", CENTRAL)
    assert run.status == "finished"
    assert files(run) == files(train(tmp_path / "whole", CENTRAL))


@pytest.mark.parametrize(("choice", "kept"), [("none", set()), ("last", {"last.safetensors"})])
def test_a_run_keeps_what_the_key_says(tmp_path: Path, choice: str, kept: set[str]) -> None:
    run = train(tmp_path, CENTRAL, **{"keep-model": choice, "num-server-rounds": 1})
    assert {path.name for path in run.path.glob("model/*")} == kept
    with pytest.raises(RunError, match="did not keep its best weights: keep-model of the run"):
        run.model("best")


def test_a_best_model_of_another_round_than_the_records_say_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RunSession, "add", stop_after)
    train(tmp_path, CENTRAL)  # round 0, with its best model
    monkeypatch.undo()
    run = train(tmp_path, CENTRAL, **{"keep-model": "last"})
    assert set(files(run)) == {"best.safetensors", "last.safetensors"}
    assert "were not kept" not in capsys.readouterr().out
    run = train(tmp_path, CENTRAL)
    assert run.best["round"] > 0
    assert set(files(run)) == {"last.safetensors"}
    assert "the weights of the best round (train " in capsys.readouterr().out


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    run = train(tmp_path, FEDERATED, **{"num-server-rounds": 2})
    facts = run.kept("last").facts
    workspace = build_workspace(run.config)
    assert facts["model"] == {
        "name": "vit_digits", "classes": 10, "channels": 1, "image-size": 8,
        "mean": list(workspace.data.mean), "std": list(workspace.data.std),
    }  # fmt: skip
    assert (facts["phase"], facts["round"], facts["format"]) == ("train", 2, 1)
    assert facts["figures"]["val_accuracy"] == run.final["val_accuracy"]
    assert facts["code"] == run.summary["code"] and len(facts["config-sha256"]) == 64
    assert facts["data"]["sha256"] == run.summary["identity"]["data-sha256"]
    assert facts["num-clients"] == 8 and facts["config"]["mask-rule"] == "random"
    assert facts["start"]["from"] == "vit_digits.safetensors"
    assert str(tmp_path) not in json.dumps(facts)  # no paths of this machine
    assert "probe-lr" not in facts["config"]  # nothing that this run did not read


@pytest.mark.parametrize("folder", ["/home/me/photos", "~/photos", "~nobody-here/photos", "photos"])
def test_the_keys_in_a_file_name_no_folder_of_this_machine(folder: str) -> None:
    config = RunConfig(dataset="folder", image_folder=folder, weights="/home/me/dino.pth")
    keys = describing_keys(config)
    assert (keys["image-folder"], keys["weights"]) == ("photos", "dino.pth")


def test_a_run_returns_its_model_and_its_mask(tmp_path: Path) -> None:
    run = train(tmp_path, FEDERATED)
    start = build_model(
        "vit_digits", weights="pretrained", image_size=8, num_classes=10, in_channels=1, seed=0
    ).model
    assert weights_sha256(flat(run, "last")) == run.summary["final-weights-sha256"]
    mask, model = run.mask, run.model()
    assert mask is not None and not model.training
    assert sum(int(part.sum()) for part in mask.values()) == run.summary["mask"]["trained"]
    moved = 0
    for name, before in start.named_parameters():
        after = model.get_parameter(name)
        if name.startswith("head."):
            assert name not in mask
            continue
        assert mask[name].shape == after.shape
        changed = before.view(torch.int32) != after.view(torch.int32)
        assert not (changed & ~mask[name]).any()
        moved += int(changed.sum())
    assert moved > 0.9 * run.summary["mask"]["trained"]


def test_the_mask_of_the_baseline_is_read_too(tmp_path: Path) -> None:
    run = train(
        tmp_path, CENTRAL, **{"head": "ridge", "mask-rule": "random", "num-server-rounds": 1}
    )
    assert run.mask is not None
    trained = sum(int(part.sum()) for part in run.mask.values())
    assert trained == run.summary["mask"]["trained"] > 0
    dense = train(tmp_path, CENTRAL, name="dense", **{"num-server-rounds": 1})
    assert dense.mask is None


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    run = train(tmp_path, CENTRAL, **{"num-server-rounds": 1})
    path = run.path / "model/last.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"last.safetensors is damaged \(|is damaged: its wei"):
            run.model()
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(RunError, match="is not a model that this release of fedta kept"):
        read_facts(path)
    write_model(path, {"a": torch.ones(2)}, {})
    assert torch.equal(read_model(path).tensors["a"], torch.ones(2))


def test_what_is_no_finished_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    run = train(tmp_path, CENTRAL, **{"num-server-rounds": 1})
    assert load_run(str(run.path)).final == run.final
    with pytest.raises(RunError, match=r"nowhere is no run directory: there is no such folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is no run directory, but holds some: name one of seed0"):
        load_run(run.path.parent)
    with pytest.raises(RunError, match=r"is no run directory: it lacks config\.toml or summary"):
        load_run(run.path / "model")
    with pytest.raises(RunError, match="weights = 'first' is not allowed"):
        run.model("first")
    stopped = train(tmp_path, CENTRAL, name="stopped", **{"max-minutes": 1e-9})
    with pytest.raises(RunError, match=r"is not finished \(stopped after no round\): the"):
        load_run(stopped.path)
    assert load_run(stopped.path, unfinished=True).status == "stopped"
    with pytest.raises(RunError, match="is not finished"):
        stopped.model()
    for name, text in {
        "metrics.csv": "a,b\n1,2,3\n4", "summary.json": '{"status": "fin', "config.toml": "lr ="
    }.items():  # fmt: skip
        path = run.path / name
        before = path.read_text()
        path.write_text(text)
        with pytest.raises((RunError, ValueError), match=name) as refusal:
            load_run(run.path)
        assert "\n" not in str(refusal.value)
        path.write_text(before)
