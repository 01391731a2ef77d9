"""FedAvg by Apple's pfl-research, in its simulated backend: run by the Python that has `pfl`.

    python -m benchmarks.peers.pfl_rounds FOLDER

Written after pfl's own benchmarks; what costs time and changes nothing here is left out (weighting
by examples: all clients have as many; evaluation after the first round).
"""

import sys
import time
from functools import partial
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.peers.task import Images, Normalize, Task, new_model, read_task, write_result


class Net(nn.Module):
    """The task's network with the two methods that pfl asks for."""

    def __init__(self, task: Task, images: Images) -> None:
        super().__init__()
        self.net = new_model(task, images)
        self.normalize = Normalize(task)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return what is trained on."""
        self.train()
        return cross_entropy(self.net(self.normalize(images)), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return what pfl measures before and after the first round."""
        return {"loss": Weighted(len(labels) * self.loss(images, labels).item(), len(labels))}


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Notes when the rounds end."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def on_train_begin(self, *, model: Any) -> Any:
        """Note the beginning."""
        self.stamps.append(time.time())
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        """Note the end of a round and go on."""
        self.stamps.append(time.time())
        return False, Metrics()


def pfl_rounds(task: Task) -> list[float]:
    """Train the rounds of a task; return when each ended."""
    torch.set_num_threads(task.threads)
    data = Images.of(task)

    def user_dataset(user: int) -> Any:
        return PyTorchTensorDataset(data.client(user), user_id=str(user))

    users = FederatedDataset(user_dataset, get_user_sampler("random", range(task.num_clients)))
    net = Net(task, data)
    model = PyTorchModel(
        net,
        partial(torch.optim.SGD, momentum=task.momentum, weight_decay=task.weight_decay),
        torch.optim.SGD(net.parameters(), lr=1.0),  # applies the mean update as it is
    )
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds + 1,
            train_cohort_size=task.clients_per_round,
            val_cohort_size=0,
        ),
        SimulatedBackend(users, users),
        model,
        NNTrainHyperParams(
            local_num_epochs=None,
            local_num_steps=task.local_steps,
            local_learning_rate=task.lr,
            local_batch_size=task.batch_size,
        ),
        NNEvalHyperParams(local_batch_size=100),
        [clock],
    )
    return clock.stamps


if __name__ == "__main__":
    write_result(sys.argv[1], pfl_rounds(read_task(sys.argv[1])))
