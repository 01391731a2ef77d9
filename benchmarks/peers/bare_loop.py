"""FedAvg as one writes it in a notebook, with PyTorch's defaults: what all others are divided by.

python -m benchmarks.peers.bare_loop FOLDER
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.peers.task import Images, Normalize, Task, new_model, read_task, write_result


def bare_loop(task: Task, prepare: Callable[[nn.Module], object] | None = None) -> list[float]:
    """Train the rounds of a task one client after the other; return when each ended.

    Parameters
    ----------
    prepare : callable, optional
        What is done to the model before anything is timed.
    """
    torch.set_num_threads(task.threads)
    data, normalize = Images.of(task), Normalize(task)
    model = new_model(task, data).train()
    if prepare is not None:
        prepare(model)
    parameters = list(model.parameters())
    weights = [parameter.detach().clone() for parameter in parameters]
    draw = np.random.default_rng(0)
    stamps = [time.time()]
    for _ in range(task.rounds):
        clients = draw.choice(task.num_clients, size=task.clients_per_round, replace=False)
        examples = sum(len(data.client(client)[1]) for client in clients)
        total = [torch.zeros_like(weight) for weight in weights]
        for client in clients:
            images, labels = data.client(client)
            with torch.no_grad():
                for parameter, weight in zip(parameters, weights, strict=True):
                    parameter.copy_(weight)
            optimizer = torch.optim.SGD(
                parameters, lr=task.lr, momentum=task.momentum, weight_decay=task.weight_decay
            )
            for _ in range(task.local_steps):
                batch = torch.randperm(len(images))[: task.batch_size]
                optimizer.zero_grad()
                cross_entropy(model(normalize(images[batch])), labels[batch]).backward()
                optimizer.step()
            with torch.no_grad():
                for sum_, parameter in zip(total, parameters, strict=True):
                    sum_.add_(parameter, alpha=len(images) / examples)
        weights = total
        stamps.append(time.time())
    return stamps


if __name__ == "__main__":
    write_result(sys.argv[1], bare_loop(read_task(sys.argv[1])))
