"""What a run says at its end of the models that its clients have for themselves."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engine.client_memory import MemoryLostError
from fedta_app.algorithms import PERSONAL, Algorithm, make_algorithm
from fedta_app.analysis import client_accuracy
from fedta_app.analysis.classification import HOW_CLIENTS, Floats
from fedta_app.analysis.personal import recalls
from fedta_app.config import RunConfig
from fedta_app.training.ahead import adapt
from fedta_app.training.client import LAYERS, load_weights
from fedta_app.training.facts import label_counts
from fedta_app.training.head_fit import PersonalHeads
from server_app.state import ServerState


def has_own_models(config: RunConfig) -> bool:
    """Return whether clients have models of their own, whose accuracy is measured at the end."""
    algorithm = make_algorithm(config.strategy, vars(config))
    layers = config.personal_layers != "none"
    return bool(algorithm.personal or algorithm.adaptation or config.personal_ridge or layers)


def personal_figures(
    state: ServerState, algorithm: Algorithm, memories: Mapping[int, str]
) -> dict[str, Any]:
    """Return the mean accuracy of clients' own models, and of the global model on the same clients.

    Both are on each client's own label distribution, so they differ by the models alone. Models
    that clients keep are read from their memories, which are on the server's disk in a simulation
    only: in a deployment they never leave the clients, and none is measured. The step that makes
    the global model a client's own is taken here, and its own ridge head solved here, for every
    client, on the images that the client has by the partition of this data set.

    Parameters
    ----------
    memories : mapping from partition id to str
        Digests of the memories.

    Raises
    ------
    MemoryLostError
        When one cannot be read in a simulation.
    """
    workspace, counts = state.workspace, label_counts(state.workspace)
    splits = dict(zip(("val", "test"), workspace.evaluation_sets, strict=True))
    if workspace.config.measure_test == "never":
        del splits["test"]
    state.memory.load_head(state.head)
    own: dict[str, list[Floats]] = {split: [] for split in splits}
    measured: list[int] = []
    unread = diverged = 0
    head = None if workspace.head is None else workspace.head.vector.clone()
    load_own = _loader(state, algorithm, memories)
    computed = algorithm.adaptation or workspace.config.personal_ridge
    for client in range(len(counts)) if computed else sorted(memories):  # a model may be large
        workspace.weights.load(state.weights)
        try:
            load_own(client)
        except MemoryLostError:
            if state.exchange.one_machine:
                raise
            unread += 1
            continue
        if not workspace.weights.vector.isfinite().all():
            diverged += 1
            continue
        measured.append(client)
        for split, images in splits.items():
            own[split].append(recalls(workspace, images, counts[client]))
    if head is not None and workspace.head is not None:
        workspace.head.load(head)
    figures: dict[str, Any] = {"clients": len(measured), "unread": unread, "diverged": diverged}
    if not measured:
        return figures
    workspace.weights.load(state.weights)
    accuracies: dict[str, dict[str, float | None]] = {"own": {}, "global": {}}
    for split, images in splits.items():
        everywhere = recalls(workspace, images, counts.sum(axis=0))
        for name, accuracy in (("own", np.stack(own[split])), ("global", everywhere)):
            mean = _mean(client_accuracy(accuracy, counts[measured]))
            accuracies[name][f"{split}_accuracy"] = mean
    return {**figures, **accuracies, "how": HOW_CLIENTS}


def _loader(
    state: ServerState, algorithm: Algorithm, memories: Mapping[int, str]
) -> Callable[[int], None]:
    """Return what makes a client's own model of the global one, which the workspace holds then."""
    workspace = state.workspace
    if workspace.config.personal_ridge:
        workspace.weights.load(state.weights)
        return PersonalHeads(workspace, workspace.config.personal_ridge).load

    def load(client: int) -> None:
        setup = state.setup(client)
        trained = state.memory.mask(setup.up or setup.down)
        if algorithm.adaptation:
            adapt(workspace, client, algorithm.adaptation, trained)
            return
        memory = state.memory.recall(client, memories[client])
        if workspace.layers is not None:
            workspace.layers.load(workspace.weights.vector, trained, memory[LAYERS])
        else:
            load_weights(workspace, memory[PERSONAL], trained)

    return load


def _mean(values: Floats) -> float | None:
    """Return the mean of the values that are known, None if there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
