"""Every part runs on small vectors and reports what it says; no speed is asserted."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as everything
from benchmarks import (
    bench_aggregation,
    bench_blocks,
    bench_clients,
    bench_memory,
    bench_precision,
    bench_table,
    bench_transport,
)
from benchmarks.harness import report, same_bits
from benchmarks.harness.contenders import Contender, Timing
from benchmarks.harness.processes import Memory
from engine.transport import TRANSPORTS
from fedta_app.config import RunConfig
from fedta_app.seeding import torch_generator
from fedta_app.training.steps import mini_batches
from fedta_app.training.workspace import build_workspace


def test_aggregation_reports_every_way(tmp_path: Path) -> None:
    out = tmp_path / "aggregation.json"
    bench_aggregation.main(["--size", "5000", "--pairs", "2", "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    ways = {row["way"].split(",")[0]: row["bytes"] / 5000 for row in rows}
    # 10 updates are read; each buffer is written once, then read and written 9 times
    assert ways == {
        "mean": 4 * (10 + 19),
        "masked mean": 4 * (10 + 2 * 19) + 10,
        "sign election": 4 * (10 + 4 * 19),
    }
    assert all(row["ratio"] > 0 for row in rows)


def test_transports_reports_every_one(tmp_path: Path) -> None:
    out = tmp_path / "transport.json"
    bench_transport.main(["--size", "5000", "--pairs", "2", "--json", str(out)])
    result = json.loads(out.read_text())
    assert tuple(row["transport"] for row in result["rows"]) == TRANSPORTS
    assert {"device", "processor", "cores", "versions", "code", "command"} < set(result)


@pytest.mark.slow
def test_precision_compares_every_variant(tmp_path: Path) -> None:
    out = tmp_path / "precision.json"
    bench_precision.main(["--pairs", "1", "--batch", "2", "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    expected = [
        (name, *kind) for name in bench_precision.MODELS for kind in bench_precision.VARIANTS
    ]
    assert [(row["model"], row["precision"], row["attention"]) for row in rows] == expected
    assert all(row["ratio"] == 1 for row in rows[:: len(bench_precision.VARIANTS)])
    assert all(row["ms"] > 0 for row in rows)


def test_blocks_are_held_against_the_whole_network_and_a_bare_loop(tmp_path: Path) -> None:
    out = tmp_path / "blocks.json"
    tiny = ["--model", "vit_digits", "--image-size", "0", "--blocks", "1", "--rounds", "1"]
    bench_blocks.main([*tiny, "--json", str(out)])
    ratios = [row["last blocks by this"] for row in json.loads(out.read_text())["rows"]]
    assert ratios[0] == 1 and all(ratio > 0 for ratio in ratios)


def test_a_bare_loop_over_the_last_blocks_ends_where_our_round_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With batches in the same order, the two compute the same update up to rounding."""
    values = {**bench_blocks._ROUND, "model": "vit_digits", "trained-blocks": 1, "threads": 1}
    space = build_workspace(RunConfig.from_mapping(values))
    bare, start = bench_blocks.BareLoop(space), space.weights.vector.clone()
    images = space.client_data(0)
    orders = [
        torch.cat(
            list(
                mini_batches(
                    len(images), 8, 16, torch_generator(space.config.seed, "batches", 1, client)
                )
            )
        )
        for client in range(bench_blocks.CLIENTS)
    ]
    monkeypatch.setattr(bench_blocks.torch, "randperm", lambda _: orders.pop(0))
    theirs = torch.cat([part.flatten() for part in bare()])
    monkeypatch.undo()
    space.weights.load(start)
    ours = bench_blocks.fedta_round(space, start, 1)
    assert ours.abs().max() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_table_s_cells_are_held_against_their_rounds(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    cells = ["heterogeneity/nc5-j*", "--scale", "tiny", "--cells", "2"]
    bench_table.main([*cells, "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 2 and all(row["wall"] > row["useful"] > 0 for row in rows)


class FakeRunner:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time(self, engine: Contender, rounds: int) -> Timing:
        return Timing([self._seconds] * rounds, 10 * self._seconds)

    def watch(self, engine: Contender) -> Memory:
        return Memory(1000 * self._seconds, 0.0, 100 * self._seconds)


def test_many_clients_are_divided_by_few(capsys: pytest.CaptureFixture[str]) -> None:
    few, many = FakeRunner(1.0), FakeRunner(1.5)
    row = bench_clients.measure(few, many, bench_clients.ENGINES[0], repeats=2, rounds=3)  # type: ignore[arg-type]
    assert row["ratio"] == row["server-ratio"] == 1.5
    assert row["startup"] == [10.0, 15.0]
    bench_clients.show("in-process", row)
    assert "s/round                  1.000     1.500    1.50 x" in capsys.readouterr().out


def test_what_clients_keep_is_timed_by_the_difference_of_neighbours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        bench_memory, "Runner",
        lambda ready: FakeRunner(2.0 if ready.job.changes["strategy"] == "scaffold" else 1.5),
    )  # fmt: skip
    tiny = {"model": "cnn", "batch-size": 4, "num-clients": 10}
    found = bench_memory.time_per_client(tiny, str(tmp_path), repeats=2, rounds=3)
    assert found["a-client"] == pytest.approx(0.05)
    assert found["seconds"] == {"fedavg": [1.5, 1.5], "scaffold": [2.0, 2.0]}


@pytest.mark.slow
def test_the_disk_grows_with_the_clients_that_were_sampled(tmp_path: Path) -> None:
    few, many = (bench_memory.bytes_on_disk(number, 2, str(tmp_path)) for number in (100, 2000))
    assert 10 <= many["that-keep-something"] <= 20
    assert many["bytes"] <= 2 * few["bytes"]


def test_ten_clients_a_round_whatever_the_federation() -> None:
    for clients in (100, 10_000):
        values = bench_clients.job_of(clients).values()
        assert round(values["fraction-train"] * values["num-clients"]) == 10


def test_make_bench_runs_every_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[list[str]] = []

    class Done:
        returncode = 0

    def run(command: list[str], **options: object) -> Done:
        ran.append(command[2:])
        return Done()

    monkeypatch.setattr(everything.subprocess, "run", run)
    assert everything.main(["--out", str(tmp_path), "--repeats", "1"]) == 0
    assert [command[0] for command in ran] == [f"benchmarks.bench_{p}" for p in everything.PARTS]
    assert ran[0] == [
        "benchmarks.bench_rounds", "--json", str(tmp_path / "rounds.json"), "--repeats=1",
    ]  # fmt: skip
    Done.returncode = 1
    assert everything.main(["--out", str(tmp_path), "--only", "transport"]) == 1


def test_the_command_of_a_result_names_no_place() -> None:
    given = ["--data-dir", "/here", "--repeats", "2", "--json=/there", "--only", "bare loop"]
    assert report.command(given).endswith("--repeats 2 --only 'bare loop'")


def test_two_checkouts_are_compared_and_one_of_them_is_this(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(same_bits, "final_weights", lambda place, *_: asked.append(place) or "a")
    name = "in-process-random-none-fedavg"
    monkeypatch.setattr("sys.argv", ["same_bits", str(tmp_path), "--only", name])
    assert same_bits.main() == 0
    assert asked == [tmp_path.resolve(), Path(__file__).resolve().parents[2]]
