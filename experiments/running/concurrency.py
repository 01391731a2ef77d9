"""How many clients Flower's engine runs at a time: counted on a CPU, measured on a GPU.

Flower runs min(CPUs / client-cpus, GPUs / client-gpus) clients at a time. Sharing a GPU is faster
as long as one client leaves it partly idle, but each further client takes the memory of a process.
The best number is measured: processes that train like clients are started one after the other,
while memory lasts, and their total steps per second are compared.
"""

import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from experiments.running.signals import undisturbed
from fedta_app.config import RunConfig
from fedta_app.device.cpus import usable_cpus
from fedta_app.device.cuda import resolve_device
from fedta_app.errors import RunError, first_line
from fedta_app.progress import counting, phase
from fedta_app.training.client import train_client
from fedta_app.training.steps import steps_of
from fedta_app.training.workspace import build_workspace

_MOST = 8  # clients at a time on one GPU
_WORTH = 1.05  # one more client at a time should give 5% more steps per second
_SECONDS = 3.0  # per number of clients
_PATIENCE = 600.0  # seconds for a process to start, since compilation can take minutes
_MEMORY = 0.9  # share of the free memory that clients may take
_measured: dict[tuple[object, ...], tuple[float, str]] = {}  # by the keys that decide the speed


@dataclass(frozen=True)
class Machine:
    """The CPUs and GPUs that Flower divides among clients."""

    cpus: int
    gpus: int

    @classmethod
    def here(cls, config: RunConfig) -> "Machine":
        """Return this machine; GPUs count only if the run uses them."""
        on_cuda = resolve_device(config.device).type == "cuda"
        return cls(usable_cpus(), torch.cuda.device_count() if on_cuda else 0)

    def clients(self, client_cpus: int, client_gpus: float) -> int:
        """Return how many clients Flower runs at a time."""
        by_cpu = self.cpus // client_cpus
        return min(by_cpu, int(self.gpus / client_gpus)) if client_gpus else by_cpu


def client_share(config: RunConfig, *, client_cpus: int, client_gpus: float | None) -> float:
    """Return the share of a GPU for each client, and print how many clients run at a time.

    Parameters
    ----------
    client_gpus : float or None
        The share to use; None measures the best one if there is a GPU.
    """
    machine = Machine.here(config)
    reason = ""
    if client_gpus is None:
        client_gpus, reason = _measured_share(config, machine, client_cpus)
    # On stderr, because the first and the last line of a run's stdout name its directory.
    print(sentence(config, machine, client_cpus, client_gpus, reason), file=sys.stderr, flush=True)
    return client_gpus


def sentence(
    config: RunConfig, machine: Machine, client_cpus: int, client_gpus: float, reason: str
) -> str:
    """Return the line that says how many clients run at a time and what limits their number."""
    number = machine.clients(client_cpus, client_gpus)
    threads = config.threads or client_cpus
    parts = [f"clients at a time: {number}, {threads} CPU thread{'s' * (threads > 1)} each"]
    if reason:
        parts.append(reason)
    if client_gpus and machine.cpus // client_cpus < int(machine.gpus / client_gpus):
        parts.append(
            f"capped by CPUs: min({machine.cpus} CPUs / client-cpus {client_cpus}, "
            f"{machine.gpus} GPUs / client-gpus {client_gpus:g})"
        )
    if threads > client_cpus:
        parts.append(f"threads = {threads} is above client-cpus = {client_cpus}, which is slow")
    return "; ".join(parts)


def _measured_share(config: RunConfig, machine: Machine, client_cpus: int) -> tuple[float, str]:
    """Return the share of a GPU that gives most steps per second, and what was measured."""
    if not machine.gpus:
        return 0.0, ""
    sampled = max(1, round(config.fraction_train * config.num_clients))
    most = min(_MOST, machine.clients(client_cpus, 0.0) // machine.gpus, sampled)
    key = (most, *config.values_that_decide("step").items())
    if key not in _measured:
        what = "measuring how many clients share a GPU best"
        print(what, file=sys.stderr, flush=True)
        try:
            with phase(what, sys.stderr):
                rates = measure(config, max(1, most))
        except (RunError, OSError) as error:
            _measured[key] = 1.0, f"not measured ({error})"
        else:
            # Ray counts in ten-thousandths of a GPU, so the share is rounded down to these.
            share = math.floor(10_000 / choose(rates)) / 10_000
            each = (f"{rate:.2f} with {number}" for number, rate in rates.items())
            _measured[key] = share, "steps/s " + ", ".join(each)
    return _measured[key]


def choose(rates: Mapping[int, float]) -> int:
    """Return the fewest clients at a time that come within 5% of the most steps per second."""
    best = max(rates.values())
    return min(number for number, rate in rates.items() if rate * _WORTH >= best)


def measure(config: RunConfig, most: int, seconds: float = _SECONDS) -> dict[int, float]:
    """Return steps per second of 1, 2, ... clients at a time, up to `most`.

    It stops early when memory is used up, or when one more client is not faster.

    Raises
    ------
    RunError
        When a training process cannot be started, or fails.
    """
    rates: dict[int, float] = {}
    with _trainers(config) as start, counting("numbers of clients", most) as done:
        trainers: list[Connection] = []
        free = _free_memory(config)
        while len(trainers) < most:
            trainers.append(start())
            rates[len(trainers)] = _rate(trainers, seconds)
            done.add()
            taken = (free - _free_memory(config)) / len(trainers)
            # The memory of one more client, and of the server, which holds a model too.
            if taken * (len(trainers) + 2) > _MEMORY * free:
                break
            if rates[len(trainers)] < _WORTH * rates.get(len(trainers) - 1, 0.0):
                break
    return rates


def _free_memory(config: RunConfig) -> float:
    """Return the free bytes of the GPU, or 0 without one, where memory sets no limit."""
    device = resolve_device(config.device)
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    return float(torch.cuda.mem_get_info(device)[0])


def _rate(trainers: list[Connection], seconds: float) -> float:
    """Return the steps per second of all trainers, which run side by side."""
    for trainer in trainers:
        trainer.send(seconds)
    return sum(_hear(trainer) for trainer in trainers)


def _hear(trainer: Connection) -> float:
    try:
        said = (
            trainer.recv()
            if trainer.poll(_PATIENCE)
            else "a training process did not answer in time"
        )
    except EOFError:
        said = "a training process ended"
    if isinstance(said, str):
        raise RunError(said)
    return float(said)


@contextmanager
def _trainers(config: RunConfig) -> Iterator[Callable[[], Connection]]:
    """Yield a function that starts one more training process; all end with the block."""
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    processes: list[Any] = []
    ends: list[Connection] = []

    def start() -> Connection:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=train_on_demand, args=(config, theirs), daemon=True)
        with undisturbed():  # Ctrl-C is for this process, which then ends the others
            process.start()
        theirs.close()
        processes.append(process)
        ends.append(ours)
        _hear(ours)
        return ours

    try:
        yield start
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.terminate()
            process.join()


def train_on_demand(config: RunConfig, pipe: Connection) -> None:
    """Train as a client does for the seconds received from the pipe, and send steps per second."""
    try:
        workspace = build_workspace(config)
        start = workspace.weights.vector.clone()
        steps = steps_of(config, len(workspace.client_data(0)))

        def train() -> None:  # returns the loss, for which it waits for the GPU
            train_client(workspace, start, partition_id=0, server_round=1, lr=config.lr)

        for _ in range(2):  # warm up libraries, then record or compile
            train()
        pipe.send(0.0)
        while True:
            seconds = pipe.recv()
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                train()
                done += steps
            pipe.send(done / (time.perf_counter() - began))
    except EOFError:
        pass  # the other end closed the pipe: the measurement is over
    except Exception as error:
        pipe.send(first_line(error))
