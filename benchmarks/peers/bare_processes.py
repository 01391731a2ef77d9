"""The bare loop as processes of one thread each, without any framework: what cores can do at best.

Each process trains its share of a round's clients. The weights and what each process has summed up
lie in memory that they share, so that nothing is sent or copied twice.
"""

import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier

import torch
from torch import Tensor, nn
from torch import multiprocessing as mp

from benchmarks.peers.bare_loop import BareClients, rounds_of
from benchmarks.peers.task import Task

Prepare = Callable[[nn.Module], object]


def bare_processes(
    task: Task, processes: int, prepare: Prepare | None = None
) -> tuple[list[float], list[Tensor]]:
    """Train the rounds of a task.

    Parameters
    ----------
    prepare : callable, optional
        What each process does to its model before anything is timed; it is sent to it by name.

    Returns
    -------
    stamps, weights
        As of `bare_loop`.
    """
    torch.set_num_threads(1)
    context = mp.get_context("spawn")
    bare = BareClients(task, prepare)
    weights = [weight.share_memory_() for weight in bare.start()]
    parts = [
        [torch.zeros_like(weight).share_memory_() for weight in weights] for _ in range(processes)
    ]
    turn = context.Barrier(processes)
    others = [
        context.Process(target=_work, args=(place, task, prepare, weights, parts, turn))
        for place in range(1, processes)
    ]
    for other in others:
        other.start()
    turn.wait()  # all of them have their images and their model
    stamps = [time.time()]
    for clients in rounds_of(task):
        _train(bare, 0, clients, weights, parts)
        turn.wait()
        for weight, *summands in zip(weights, *parts, strict=True):
            torch.sum(torch.stack(summands), 0, out=weight)
        stamps.append(time.time())
        turn.wait()
    for other in others:
        other.join()
    return stamps, weights


def _work(
    place: int,
    task: Task,
    prepare: Prepare | None,
    weights: list[Tensor],
    parts: list[list[Tensor]],
    turn: Barrier,
) -> None:
    torch.set_num_threads(1)
    bare = BareClients(task, prepare)
    turn.wait()
    for clients in rounds_of(task):
        _train(bare, place, clients, weights, parts)
        turn.wait()
        turn.wait()  # the mean is there


def _train(
    bare: BareClients,
    place: int,
    clients: list[int],
    weights: list[Tensor],
    parts: list[list[Tensor]],
) -> None:
    mean = bare.mean(weights, clients[place :: len(parts)], clients)
    for part, summed in zip(parts[place], mean, strict=True):
        part.copy_(summed)
