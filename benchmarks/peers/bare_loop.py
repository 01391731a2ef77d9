"""FedAvg as one writes it in a notebook, with PyTorch's defaults: what all others are divided by.

python -m benchmarks.peers.bare_loop FOLDER
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.peers.task import Images, Normalize, Task, new_model, read_task, write_result


def bare_loop(
    task: Task, prepare: Callable[[nn.Module], object] | None = None
) -> tuple[list[float], list[Tensor]]:
    """Train the rounds of a task one client after the other.

    Parameters
    ----------
    prepare : callable, optional
        What is done to the model before anything is timed.

    Returns
    -------
    stamps, weights
        When the first round began and when each ended, and the last weights.
    """
    torch.set_num_threads(task.threads)
    bare = BareClients(task, prepare)
    weights = bare.start()
    stamps = [time.time()]
    for clients in rounds_of(task):
        weights = bare.mean(weights, clients, clients)
        stamps.append(time.time())
    return stamps, weights


def rounds_of(task: Task) -> Iterator[list[int]]:
    """Yield the clients of each round, the same in every process."""
    draw = np.random.default_rng(0)
    for _ in range(task.rounds):
        chosen = draw.choice(task.num_clients, size=task.clients_per_round, replace=False)
        yield chosen.tolist()


class BareClients:
    """A model and the images of all clients."""

    def __init__(self, task: Task, prepare: Callable[[nn.Module], object] | None = None) -> None:
        self.task, self.data, self.normalize = task, Images.of(task), Normalize(task)
        self.model = new_model(task, self.data).train()
        if prepare is not None:
            prepare(self.model)
        self.parameters = list(self.model.parameters())

    def start(self) -> list[Tensor]:
        """Return a copy of the model's weights."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def mean(
        self, weights: Sequence[Tensor], clients: Sequence[int], everybody: Sequence[int]
    ) -> list[Tensor]:
        """Train clients from the same weights; return their part of the mean over `everybody`."""
        task = self.task
        examples = sum(len(self.data.client(client)[1]) for client in everybody)
        total = [torch.zeros_like(weight) for weight in weights]
        for client in clients:
            images, labels = self.data.client(client)
            with torch.no_grad():
                for parameter, weight in zip(self.parameters, weights, strict=True):
                    parameter.copy_(weight)
            optimizer = torch.optim.SGD(
                self.parameters, lr=task.lr, momentum=task.momentum, weight_decay=task.weight_decay
            )
            for _ in range(task.local_steps):
                batch = torch.randperm(len(images))[: task.batch_size]
                optimizer.zero_grad()
                output = self.model(self.normalize(images[batch]))
                cross_entropy(output, labels[batch]).backward()
                optimizer.step()
            with torch.no_grad():
                for sum_, parameter in zip(total, self.parameters, strict=True):
                    sum_.add_(parameter, alpha=len(images) / examples)
        return total


if __name__ == "__main__":
    write_result(sys.argv[1], bare_loop(read_task(sys.argv[1]))[0])
