"""The benches do what they say with tiny jobs; how fast anything is, no test asserts."""

import ast
import ctypes
import json
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import bench_rounds
from benchmarks.harness import contenders, jobs
from benchmarks.harness.contenders import BARE, CONTENDERS, LIMITS, Contender, Runner, Timing
from benchmarks.harness.jobs import Job, Prepared, prepared
from benchmarks.harness.processes import ROOT, BenchError, Memory, run_apart, tree
from benchmarks.peers.bare_loop import bare_loop
from benchmarks.peers.bare_processes import bare_processes
from benchmarks.peers.pfl_env import PeerError, check_pfl
from fedta_app.config import RunConfig

TINY = Job("demo/fedavg", {"num-clients": 20, "local-steps": 1, "batch-size": 4}, threads=1)
# A network of timm's, so that the peers build it as they do the large one.
TINY_VIT = Job(
    "fedavg-iid/c0.1", {**jobs.VIT_SMALL, "model": "test_vit", "local-steps": 1}, threads=1
)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Prepared]:
    with prepared(TINY, "nowhere") as job:
        yield job


class Clockwork(Runner):
    """A runner whose contenders take the seconds that they are given, in turn."""

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.seconds = seconds
        self.order: list[str] = []

    def check(self, contender: Contender) -> None:
        if contender.kind == "pfl":
            raise PeerError("there is no pfl here")

    def time(self, contender: Contender, rounds: int) -> Timing:
        self.order.append(contender.name)
        return Timing([self.seconds[contender.name].pop(0)] * rounds, 1.0)

    def watch(self, contender: Contender) -> Memory:
        return Memory(100.4, 1.0, 50.0)


def test_ratios_are_medians_over_neighbours() -> None:
    names = ["bare loop", "in-process", "flower, 1 actor", "flower, 2 actors"]
    runner = Clockwork(
        {
            "bare loop": [1.0, 2.0, 10.0, 20.0, 100.0, 200.0],  # a machine that slows down
            "in-process": [1.0, 20.0, 300.0],
            "flower, 1 actor": [5.0, 50.0, 500.0],
            "flower, 2 actors": [2.0, 20.0, 2000.0],
        }
    )
    chosen = [CONTENDERS[name] for name in names]
    found = bench_rounds.measure(runner, chosen, repeats=3, rounds=2, memory=True)
    assert runner.order[:5] == [
        "in-process", "bare loop", "flower, 1 actor", "flower, 2 actors", "bare loop",
    ]  # fmt: skip
    assert found["in-process"]["ratios"] == [1.0, 2.0, 3.0]
    assert found["in-process"]["ratio"] == 2.0
    assert found["flower, 1 actor"]["ratio"] == 5.0
    assert found["flower, 2 actors"]["ratio"] == 1.0  # of 2/2, 20/20 and 2000/200
    assert found["bare loop"]["ratios"] == [1.0, 1.0, 1.0]
    assert found["in-process"]["peak-mib"] == {"total": 100, "shared": 1, "server": 50}


def test_ratios_are_given_to_both_limits_of_the_same_repeat(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = LIMITS
    runner = Clockwork(
        {
            "bare loop": [2.0, 2.0, 20.0, 20.0],
            one.name: [1.0, 20.0],
            two.name: [0.5, 5.0],
            "flower, 2 actors": [0.6, 8.0],
        }
    )
    chosen = [one, two, CONTENDERS["flower, 2 actors"]]
    found = bench_rounds.measure(runner, chosen, repeats=2, rounds=1, memory=False)
    limits = found["flower, 2 actors"]["limits"]
    assert limits[one.name] == pytest.approx([0.6, 0.4])
    assert limits[two.name] == pytest.approx([1.2, 1.6])
    result = {"preset": "p", "dataset": "d", "repeats": 2, "threads": 2, "contenders": found}
    bench_rounds.show("job", result)
    printed = capsys.readouterr().out
    assert "0.50 (0.40-0.60)" in printed and "1.40 (1.20-1.60)" in printed
    assert torch.__version__ in printed


def test_one_repeat_is_not_kept_as_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_rounds.main(["--repeats", "1", "--json", "rounds.json"])
    assert "--repeats 1 is no result that --json could keep: 2 or more" in capsys.readouterr().err


def test_two_processes_end_where_one_does(tiny: Prepared) -> None:
    # A batch has all images of a client, so that the order in which they are drawn does not matter.
    task = replace(tiny.task, rounds=2, threads=1, batch_size=1000)
    torch.manual_seed(0)
    stamps, alone = bare_loop(task)
    torch.manual_seed(0)
    others, together = bare_processes(task, 2)
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    for found in (stamps, others):
        assert len(found) == 3 and found == sorted(found)


def test_who_cannot_run_is_named_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    runner = Clockwork({"bare loop": [1.0]})
    chosen = [BARE, CONTENDERS["pfl-research"]]
    found = bench_rounds.measure(runner, chosen, repeats=1, rounds=1, memory=False)
    assert found["pfl-research"] == {"skipped": "there is no pfl here"}
    result = {"preset": "p", "dataset": "d", "repeats": 1, "threads": 2, "contenders": found}
    bench_rounds.show("job", result)
    printed = capsys.readouterr().out
    assert re.search(r"pfl-research +skipped: there is no pfl here", printed)
    assert "One repeat is a look, and no result." in printed


def test_a_python_without_pfl_is_refused_in_one_sentence() -> None:
    with pytest.raises(PeerError, match=r"cannot import pfl: ModuleNotFoundError"):
        check_pfl(sys.executable)
    with pytest.raises(PeerError, match=r"cannot import pfl: .*No such file"):
        check_pfl("/nowhere/python")


def test_pfl_is_left_out_where_it_would_take_fewer_steps() -> None:
    with prepared(jobs.JOBS["demo"], "nowhere") as job, pytest.raises(PeerError, match="12 images"):
        Runner(job).check(CONTENDERS["pfl-research"])


def test_every_job_is_a_configuration_of_ours() -> None:
    for job in jobs.JOBS.values():
        for density in (1.0, 0.1):
            config = RunConfig.from_mapping(job.values(density=density))
            assert config.threads >= 1
            assert (config.mask_rule == "random") == (density < 1)


def test_the_task_of_the_large_job_is_the_one_of_the_issue() -> None:
    with prepared(jobs.JOBS["vit_small"], "nowhere") as job:
        task = job.task
        assert job.places["dataset"] == "synthetic"  # CIFAR-100 is not there, nothing is fetched
    assert (task.num_clients, task.clients_per_round, task.local_steps) == (100, 10, 4)
    assert (task.batch_size, task.lr, task.momentum, task.weight_decay) == (8, 0.01, 0.9, 0.0)
    assert task.model == "vit_small_patch16_224.dino"


def test_no_engine_of_ours_reaches_the_peers() -> None:
    ours = {"engine", "experiments", "client_app", "server_app", "strategies", "fedta_app"}
    for path in (ROOT / "benchmarks/peers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {name.name.split(".")[0] for name in node.names} & ours
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                small_networks = node.module == "fedta_app.models.architectures"
                assert small_networks or node.module.split(".")[0] not in ours
                if node.module.split(".")[0] == "benchmarks":  # STARTED, or one of the peers
                    assert node.module == "benchmarks" or "peers" in node.module


def test_contenders_share_the_partition(tiny: Prepared) -> None:
    from benchmarks.peers.task import Images

    data = Images.of(tiny.task)
    assert len(data.images) == 1260
    for client in range(20):  # one class each
        assert len(data.client(client)[1].unique()) == 1


@pytest.mark.slow
def test_bare_loop_and_in_process_engine_of_a_tiny_job(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(jobs.JOBS, "demo", TINY)
    out = tmp_path / "deep/rounds.json"
    arguments = ["--job", "demo", "--repeats", "2", "--rounds", "2", "--json", str(out)]
    only = ["--only", "bare loop", "--only", "in-process, density 0.1"]
    bench_rounds.main([*arguments, *only, "--no-memory", "--data-dir", str(tmp_path)])
    report = json.loads(out.read_text())
    assert {"device", "processor", "cores", "versions", "code", "command", "jobs"} == set(report)
    assert str(tmp_path) not in out.read_text()
    rows = report["jobs"]["demo"]["contenders"]
    assert list(rows) == [only[1], only[3]]
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["seconds"] / row["bare-seconds"][0])
        assert len(row["all-seconds"][0]) == 2
        assert row["startup"] > 0
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert "in one process" in re.sub(r"\s+", " ", out.with_suffix(".svg").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flower, 1 actor", "stock Flower, 2 actors"])
def test_flowers_engine_with_a_tiny_network(name: str) -> None:
    with prepared(TINY_VIT, "nowhere") as job:
        timing = Runner(job).time(CONTENDERS[name], 1)
    assert len(timing.seconds) == 1
    assert timing.startup > 0


def test_a_contender_that_fails_says_how(tiny: Prepared) -> None:
    with pytest.raises(BenchError, match=r"ended with 1: .*ValueError: no such luck"):
        run_apart([sys.executable, "-c", "raise ValueError('no such luck')"])


def says_shared_memory() -> bool:
    """Return whether the kernel tells shared memory from other: Linux before 5.3 does not."""
    try:
        return "Pss_Shmem" in Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not says_shared_memory(), reason="no Pss_Shmem in /proc/self/smaps_rollup")
def test_the_memory_of_a_tree_counts_children_and_shared_memory_once() -> None:
    code = textwrap.dedent("""
        import mmap, os, time
        own = b"x" * (50 * 2**20)
        shared = mmap.mmap(-1, 80 * 2**20)  # shared with the children
        for page in range(0, len(shared), 4096):
            shared[page] = 1
        for _ in range(2):
            if os.fork() == 0:
                child = b"y" * (30 * 2**20)
                assert sum(shared[::4096])  # every page is mapped here too
                time.sleep(3)
                os._exit(0)
        time.sleep(3)
        os.wait(), os.wait()
    """)
    peak = run_apart([sys.executable, "-c", code], watch=True)
    # Processes are looked at one after the other, while they map pages: no sum is exact. Counted
    # for each child again the shared part would be 160; without a child the total would be 160.
    assert 70 < peak.shared < 150
    assert 175 < peak.total < 350
    assert peak.server < 150


def test_the_tree_holds_grandchildren_whose_parent_ended() -> None:
    code = "import subprocess, time; subprocess.run(['sh', '-c', 'sleep 2 &']); time.sleep(2)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        preexec_fn=lambda: ctypes.CDLL(None).prctl(36, 1),
    )
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            names = [_name(pid) for pid in tree(process.pid)]
            if "sleep" in names:
                break
            time.sleep(0.05)
        assert "sleep" in names
    finally:
        process.kill()
        process.wait()


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_warm_up_and_last_round_are_left_out(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(command: list[str], *, watch: bool = False) -> Memory:
        result = {"started": 100.0, "stamps": [103.0, 110.0, 111.0, 113.0, 120.0]}
        Path(command[-1], "result.json").write_text(json.dumps(result))
        return Memory()

    monkeypatch.setattr(contenders, "run_apart", answer)
    timing = Runner(tiny).time(BARE, 2)
    assert timing == Timing([1.0, 2.0], 3.0)
    assert timing.median == 1.5
    with pytest.raises(BenchError, match="noted 5 times"):
        Runner(tiny).time(BARE, 3)
