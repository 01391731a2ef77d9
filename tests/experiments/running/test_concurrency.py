import contextlib
import multiprocessing
from typing import Any

import pytest

from experiments.running import concurrency
from experiments.running.concurrency import Machine, choose, client_share, measure, sentence
from fedta_app.config import RunConfig
from fedta_app.errors import RunError

CONFIG = RunConfig.from_mapping(
    {"weights": "random", "num-clients": 20, "fraction-train": 0.5, "device": "cpu"}
)


@pytest.mark.parametrize(
    ("machine", "cpus", "gpus", "clients"),
    [
        (Machine(2, 0), 1, 0.0, 2),
        (Machine(2, 0), 2, 0.0, 1),
        (Machine(2, 1), 1, 0.25, 2),  # Colab
        (Machine(16, 1), 1, 0.25, 4),
        (Machine(16, 2), 1, 0.3333, 6),
        (Machine(16, 1), 1, 0.1428, 7),
    ],
)
def test_clients_at_a_time_are_flowers_own_count(
    machine: Machine, cpus: int, gpus: float, clients: int
) -> None:
    assert machine.clients(cpus, gpus) == clients


@pytest.mark.parametrize(
    ("rates", "number"),
    [
        ({1: 10.0}, 1),
        ({1: 10.0, 2: 10.3}, 1),
        ({1: 10.0, 2: 15.0, 3: 15.5}, 2),
        ({1: 10.0, 2: 14.0, 3: 18.0, 4: 17.0}, 3),
    ],
)
def test_one_more_client_must_pay(rates: dict[int, float], number: int) -> None:
    assert choose(rates) == number


@pytest.mark.parametrize(
    ("machine", "cpus", "gpus", "line"),
    [
        (Machine(2, 0), 1, 0.0, "clients at a time: 2, 1 CPU thread each"),
        (Machine(4, 0), 2, 0.0, "clients at a time: 2, 2 CPU threads each"),
        (
            Machine(2, 1),
            1,
            0.25,
            (
                "clients at a time: 2, 1 CPU thread each; steps/s 1.00 with 1; "
                "capped by CPUs: min(2 CPUs / client-cpus 1, 1 GPUs / client-gpus 0.25)"
            ),
        ),
    ],
)
def test_the_line_says_what_limits(machine: Machine, cpus: int, gpus: float, line: str) -> None:
    reason = "steps/s 1.00 with 1" if gpus else ""
    assert sentence(CONFIG, machine, cpus, gpus, reason) == line


def test_more_threads_than_cpus_are_named() -> None:
    line = sentence(CONFIG.with_values(threads=4), Machine(2, 0), 1, 0.0, "")
    assert line.endswith("threads = 4 is above client-cpus = 1, which is slow")


def test_a_cpu_needs_no_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    assert client_share(CONFIG, client_cpus=1, client_gpus=None) == 0.0
    assert capsys.readouterr().err.startswith("clients at a time: ")


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "_measured", {})
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls, config: cls(16, 1)))


def test_a_gpu_is_measured_once_per_kind_of_run(
    gpu_machine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def rates(config: RunConfig, most: int) -> dict[int, float]:
        calls.append(most)
        return {1: 4.0, 2: 7.0, 3: 8.0, 4: 8.1}

    monkeypatch.setattr(concurrency, "measure", rates)
    for seed in (0, 1):
        config = CONFIG.with_values(seed=seed)
        assert client_share(config, client_cpus=1, client_gpus=None) == 0.3333
    assert calls == [8]
    output = capsys.readouterr().err
    assert "steps/s 4.00 with 1, 7.00 with 2, 8.00 with 3, 8.10 with 4" in output
    assert client_share(CONFIG, client_cpus=1, client_gpus=0.5) == 0.5
    assert calls == [8]


def test_what_cannot_be_measured_gives_each_client_a_gpu(
    gpu_machine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig, most: int) -> dict[int, float]:
        raise RunError("CUDA out of memory")

    monkeypatch.setattr(concurrency, "measure", fail)
    assert client_share(CONFIG, client_cpus=1, client_gpus=None) == 1.0
    assert "not measured (CUDA out of memory)" in capsys.readouterr().err


class Trainers:
    """Stands in for processes: what they say and take is given."""

    def __init__(self, rates: list[float], gigabytes: float) -> None:
        self.rates, self.gigabytes, self.started = rates, gigabytes, 0

    def start(self) -> Any:
        self.started += 1
        return self

    def rate(self, trainers: list[Any], seconds: float) -> float:
        return self.rates[len(trainers) - 1]

    def free(self, config: RunConfig) -> float:
        return 16.0 - self.gigabytes * self.started


@pytest.mark.parametrize(
    ("rates", "gigabytes", "most", "measured"),
    [
        ([1, 2, 3, 4, 5], 1.0, 4, 4),  # what was asked for
        ([1, 2, 2.01, 4, 5], 1.0, 5, 3),  # what pays
        ([1, 2, 3, 4, 5], 4.0, 5, 2),  # what fits, with the server beside it
        ([1, 2, 3, 4, 5], 9.0, 5, 1),
    ],
)
def test_measuring_ends_where_speed_or_memory_do(
    rates: list[float],
    gigabytes: float,
    most: int,
    measured: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainers = Trainers(rates, gigabytes)
    monkeypatch.setattr(
        concurrency, "_trainers", lambda config: contextlib.nullcontext(trainers.start)
    )
    monkeypatch.setattr(concurrency, "_rate", trainers.rate)
    monkeypatch.setattr(concurrency, "_free_memory", trainers.free)
    assert list(measure(CONFIG, most)) == list(range(1, measured + 1))


def test_processes_that_train_are_measured_and_ended() -> None:
    rates = measure(CONFIG.with_values(threads=1, local_steps=1), 1, seconds=0.2)
    assert rates[1] > 0
    assert not multiprocessing.active_children()


def test_a_process_that_fails_is_a_sentence() -> None:
    broken = CONFIG.with_values(weights="/nowhere.pth")
    with pytest.raises(RunError, match=r"/nowhere\.pth"):
        measure(broken, 2, seconds=0.2)
