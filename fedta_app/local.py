"""A client's part in a round, free of Flower."""

from dataclasses import dataclass

from torch import Tensor

from fedta_app.training import make_optimizer, train_steps
from fedta_app.workspace import Workspace


@dataclass(frozen=True)
class LocalResult:
    """What a client sends back.

    `update` is local minus global weights, of the shape of the vector that came; it is the
    workspace's own memory and holds only until the next client trains here.
    """

    update: Tensor
    num_examples: int
    loss: float


def train_client(
    workspace: Workspace, global_weights: Tensor, *, partition_id: int, server_round: int, lr: float
) -> LocalResult:
    """Train the global weights on a client's images for exactly `local-steps` steps of SGDM."""
    weights = workspace.weights
    weights.load(global_weights)
    images = workspace.client_data(partition_id)
    optimizer = make_optimizer(workspace.config, workspace.model)
    loss = train_steps(workspace, optimizer, images, lr=lr, key=(server_round, partition_id))
    update = weights.vector.sub_(global_weights.to(weights.vector.device))
    return LocalResult(update, len(images), loss)
