"""What depends only on weights and data is computed once, and shared by the runs of a machine."""

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

from client_app import app as client
from fedta_app.config import RunConfig
from fedta_app.training import frozen, scoring, shared_masks, workspace
from tests.server_app.masked import MASKED, rows, run

BLOCKS = {"trained-blocks": 1, "lr": 0.01, "augment": False}
SCOPES: list[dict[str, Any]] = [
    {"mask-scope": "global"},
    {"mask-rule": "agreement", "calibration-fraction": 0.5},
    {"mask-scope": "server"},
    {"mask-scope": "vote"},
]
COMPARED = ["phase", "round", "val_loss", "bytes_up", "bytes_down", "clients_ok"]


def nothing(*_: Any, **__: Any) -> Any:
    raise AssertionError("it was computed again")


def figures(folder: Path) -> list[list[str]]:
    phases = ("head", "calibrate", "start", "train")
    return [[row[name] for name in COMPARED] for phase in phases for row in rows(folder, phase)]


@pytest.mark.parametrize("values", SCOPES, ids=str)
def test_a_later_run_has_the_bits_and_the_traffic_of_one_without_a_cache(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for number, cache in enumerate(["", str(tmp_path / "cache"), str(tmp_path / "cache")]):
        if number == 2 and values.get("mask-scope") != "vote":  # clients' own masks are not shared
            monkeypatch.setattr(client, "scores", nothing)
            monkeypatch.setattr(scoring, "scores", nothing)
        if number == 2:
            monkeypatch.setattr(frozen, "_each", nothing)
        folder = tmp_path / str(number)
        summary = run(folder, **BLOCKS, **values, **{"cache-dir": cache})
        found[number] = (summary["final-weights-sha256"], summary["mask"], figures(folder))
    assert found[0] == found[1] == found[2]


CHANGES: list[dict[str, Any]] = [
    {"seed": 1}, {"num-classes-per-client": 5}, {"calibration-examples": 7}, {"soft-value": 0.5},
    {"sparsity": 0.8}, {"sensitivity-labels": "true"}, {"head-temperature": 0.5},
    {"trained-blocks": 2}, {"weights": "random"}, {"mask-rule": "most-sensitive"},
]  # fmt: skip


SHORT = {**BLOCKS, "num-server-rounds": 1, "eval-every": 1, "calibration-rounds": 1}


@pytest.fixture(scope="module")
def filled_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder that one run of `SHORT` has filled; copy it before you write to it."""
    folder = tmp_path_factory.mktemp("filled")
    run(folder, **SHORT, **{"cache-dir": str(folder / "cache")})
    return folder / "cache"


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_other_inputs_have_a_mask_of_their_own(
    tmp_path: Path, change: dict[str, Any], filled_cache: Path
) -> None:
    cache = shutil.copytree(filled_cache, tmp_path / "cache")
    assert len(list(cache.glob("mask-*"))) == 1
    run(tmp_path / "changed", **{**SHORT, "cache-dir": str(cache), **change})
    assert len(list(cache.glob("mask-*"))) == 2


def test_a_mask_that_hostile_clients_made_is_not_shared(tmp_path: Path) -> None:
    cache = {"cache-dir": str(tmp_path / "cache")}
    hostile = {"attackers": 0.2, "attack": "scores"}
    attacked = run(tmp_path / "attacked", **SHORT, **cache, **hostile)["mask"]
    assert not list((tmp_path / "cache").glob("mask-*"))
    honest = run(tmp_path / "honest", **SHORT, **cache)["mask"]
    again = run(tmp_path / "again", **SHORT, **cache, **hostile)["mask"]
    assert attacked == again != honest


def test_a_mask_of_secure_sums_is_not_shared(tmp_path: Path) -> None:
    """Its scores are rounded, and travel as larger numbers: bits and bytes depend on both."""
    secure = {"cache-dir": str(tmp_path / "cache"), "secure-aggregation": True}
    first = run(tmp_path / "first", **SHORT, **secure)
    again = run(tmp_path / "again", **SHORT, **secure)
    assert not list((tmp_path / "cache").glob("mask-*"))
    assert figures(tmp_path / "first") == figures(tmp_path / "again")
    assert first["mask"] == again["mask"]


def test_a_run_that_only_trains_otherwise_shares_the_mask(tmp_path: Path) -> None:
    cache = {"cache-dir": str(tmp_path / "cache")}
    changes: list[dict[str, Any]] = [{}, {"lr": 0.2, "head-refresh": 1}, {"strategy": "fedavg"}]
    masks = [
        run(tmp_path / str(number), **{**BLOCKS, **cache, **values})["mask"]
        for number, values in enumerate(changes)
    ]
    assert masks[0] == masks[1] == masks[2]
    assert len(list((tmp_path / "cache").glob("mask-*"))) == 2  # of two calibration rounds


def test_a_mask_without_a_failed_client_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = client.scores, []

    def sometimes(*values: Any, **named: Any) -> Any:
        calls.append(values)
        if len(calls) == 2:
            raise RuntimeError("this client fails")
        return real(*values, **named)

    monkeypatch.setattr(client, "scores", sometimes)
    values = {**BLOCKS, "calibration-rounds": 1, "calibration-fraction": 0.5}
    run(tmp_path / "run", **values, **{"cache-dir": str(tmp_path / "cache")})
    assert calls and not list((tmp_path / "cache").glob("mask-*"))


def test_a_mask_of_other_machines_is_neither_kept_nor_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**BLOCKS, "cache-dir": str(tmp_path / "cache")}
    run(tmp_path / "here", **values)
    before = sorted((tmp_path / "cache").glob("mask-*"))
    monkeypatch.setattr("server_app.state.is_deployment", lambda grid: True)
    scored = []
    real = client.scores

    def counted(*given: Any, **named: Any) -> Any:
        scored.append(1)
        return real(*given, **named)

    monkeypatch.setattr(client, "scores", counted)
    run(tmp_path / "there", **values)
    assert scored and sorted((tmp_path / "cache").glob("mask-*")) == before


@pytest.mark.parametrize("transport", ["shared", "wire"])
def test_a_known_mask_is_told_by_every_transport(tmp_path: Path, transport: str) -> None:
    values = {**BLOCKS, "cache-dir": str(tmp_path / "cache"), "transport": transport}
    first, second = (run(tmp_path / name, **values) for name in ("first", "second"))
    assert first["final-weights-sha256"] == second["final-weights-sha256"]
    assert figures(tmp_path / "first") == figures(tmp_path / "second")


def test_seeds_share_tokens_and_features_where_they_share_the_split(tmp_path: Path) -> None:
    """Their heads begin with other random weights, which no feature depends on."""
    cache = {**BLOCKS, "cache-dir": str(tmp_path / "cache"), "val-seed": 0}
    for seed in (0, 1):
        run(tmp_path / str(seed), **cache, seed=seed)
    assert len(list((tmp_path / "cache").glob("tokens-*"))) == 3  # train, validation, test
    assert len(list((tmp_path / "cache").glob("features-*"))) == 2 + 1  # "always" reads test images


def test_a_run_leaves_no_workspace_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images and weights would stay while the next cells of a table run in this process."""
    made = []
    real = workspace.build_workspace

    def remembered(config: Any, *, node: int | None) -> Any:
        found = real(config, node=node)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(workspace, "build_workspace", remembered)
    for number in range(3):
        run(tmp_path / str(number), **BLOCKS, **{"cache-dir": str(tmp_path / "cache")})
    assert [reference() is not None for reference in made[:-1]] == [False, False]


@pytest.mark.parametrize("part", ["shared", "mask-rule least-sensitive", "model vit_digits"])
def test_a_mask_of_other_code_is_not_taken(
    tmp_path: Path, part: str, filled_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an edit of one's own rule, whose name stays the same."""
    cache = shutil.copytree(filled_cache, tmp_path / "cache")
    values = {**SHORT, "cache-dir": str(cache)}
    for module in (frozen, shared_masks):
        edited = {**module.code_parts(RunConfig.from_mapping({**MASKED, **values})), part: "edited"}
        monkeypatch.setattr(module, "code_parts", lambda config, edited=edited: edited)
    before = len(list(cache.glob("tokens-*")))
    run(tmp_path / "after", **values)
    assert len(list(cache.glob("mask-*"))) == 2
    tokens = len(list(cache.glob("tokens-*")))
    assert tokens == (2 * before if part.startswith("model") else before)
