"""FedSGD, local SGD and post-local SGD: FedAvg at special values, against SGD without clients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from client_app.app import app as client_app
from engine.client_memory import forget_run
from engine.inprocess import run_in_process
from fedta_app.centralized import run_centralized
from fedta_app.config import RunConfig
from fedta_app.finished.reading import load_run
from fedta_app.pace.schedule import local_steps
from fedta_app.runs.directory import run_path
from fedta_app.seeding import torch_generator
from fedta_app.training.client import train_client
from fedta_app.training.steps import mini_batches
from fedta_app.training.workspace import Workspace, build_workspace
from server_app.app import app as server_app

PLAIN = {
    "name": "test", "partition": "iid", "num-clients": 5, "fraction-train": 1.0,
    "num-server-rounds": 3, "local-steps": 3, "lr": 0.2, "momentum": 0.0, "augment": False,
    "weights": "random", "eval-size": 20, "eval-every": 3, "threads": 1, "engine": "in-process",
}  # fmt: skip


def workspace_of(folder: Path, **values: Any) -> Workspace:
    return build_workspace(config_of(folder, **values))


def config_of(folder: Path, **values: Any) -> RunConfig:
    return RunConfig.from_mapping({**PLAIN, "results-dir": str(folder), **values})


def weights_after(folder: Path, **values: Any) -> Tensor:
    """Return the weights of a run, in the order of the workspace."""
    config = config_of(folder, **values)
    forget_run()
    if config.engine == "centralized":
        run_centralized(config)
    else:
        run_in_process(server_app, client_app, config.to_mapping(), config.num_clients)
    state = load_run(run_path(config)).model().state_dict()
    return torch.cat([state[name].flatten() for name in workspace_of(folder).weights.names])


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_fedsgd_is_a_full_batch_step_of_centralised_sgd(tmp_path: Path, spread: float) -> None:
    """Whatever the clients' sizes: the mean by images of their gradients is the gradient of all."""
    full = {"local-steps": 1, "batch-size": 10_000, "size-spread": spread}
    federated = weights_after(tmp_path / "clients", **full)
    central = weights_after(tmp_path / "central", engine="centralized", **full)
    torch.testing.assert_close(federated, central, rtol=0, atol=1e-5)
    start = workspace_of(tmp_path).weights.vector
    assert (federated - start).abs().max() > 1e-3


def test_one_client_is_sgd(tmp_path: Path) -> None:
    space = workspace_of(tmp_path, **{"num-clients": 1})
    images = space.client_data(0)
    parameters = list(space.model.parameters())
    space.model.train()
    for server_round in (1, 2, 3):
        order = torch_generator(0, "batches", server_round, 0)
        for positions in mini_batches(len(images), 16, 3, order):
            batch = images.subset(positions)
            loss = cross_entropy(space.model(space.inputs(batch.images)), batch.labels)
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters), strict=True
            ):
                parameter.data -= 0.2 * gradient
    found = weights_after(tmp_path, **{"num-clients": 1})
    torch.testing.assert_close(found, space.weights.vector, rtol=1e-5, atol=1e-6)


def test_one_step_of_many_clients_is_sgd_with_their_batches_together(tmp_path: Path) -> None:
    values = {"local-steps": 1, "num-server-rounds": 1, "eval-every": 1}
    space = workspace_of(tmp_path, **values)
    drawn = []
    for client in range(5):
        images = space.client_data(client)
        order = torch_generator(0, "batches", 1, client)
        drawn.append(images.subset(next(mini_batches(len(images), 16, 1, order))))
    inputs = torch.cat([space.inputs(batch.images) for batch in drawn])
    space.model.train()
    loss = cross_entropy(space.model(inputs), torch.cat([batch.labels for batch in drawn]))
    gradients = torch.autograd.grad(loss, list(space.model.parameters()))
    expected = space.weights.vector - 0.2 * torch.cat([g.flatten() for g in gradients])
    found = weights_after(tmp_path, **values)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_post_local_sgd_takes_single_steps_first(tmp_path: Path) -> None:
    """The run against a loop whose rounds take 1, 1 and 3 steps."""
    values = {"local-steps-from": 2}
    assert [local_steps(config_of(tmp_path, **values), r) for r in (1, 2, 3)] == [1, 1, 3]
    space = workspace_of(tmp_path, **values)
    weights = space.weights.vector.clone()
    for server_round, steps in ((1, 1), (2, 1), (3, 3)):
        total = torch.zeros_like(weights)
        for client in range(5):
            result = train_client(
                space, weights, partition_id=client, server_round=server_round, lr=0.2,
                local_steps=steps,
            )  # fmt: skip
            assert result.steps == steps
            total += result.num_examples * result.update
        weights = weights + total / len(space.data.train)
    found = weights_after(tmp_path / "run", **values)
    torch.testing.assert_close(found, weights, rtol=1e-5, atol=1e-6)


def test_a_switch_changes_bits_only_where_it_changes_steps(tmp_path: Path) -> None:
    at_start = weights_after(tmp_path / "a", **{"local-steps": 1})
    late = weights_after(tmp_path / "b", **{"local-steps": 1, "local-steps-from": 2})
    assert torch.equal(at_start, late)
    assert not torch.equal(late, weights_after(tmp_path / "c", **{"local-steps-from": 2}))
