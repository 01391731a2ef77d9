"""What a run says at its end of the models that its clients keep for themselves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.client_memory import MemoryLostError
from fedta_app.algorithms import PERSONAL
from fedta_app.analysis import client_accuracy
from fedta_app.analysis.classification import HOW_CLIENTS, Floats
from fedta_app.analysis.personal import recalls
from fedta_app.training.client import load_weights
from fedta_app.training.facts import label_counts
from server_app.state import ServerState


def personal_figures(state: ServerState, memories: Mapping[int, str]) -> dict[str, Any]:
    """Return the mean accuracy of clients' own models, and of the global model on the same clients.

    Both are on each client's own label distribution, so they differ by the models alone. The server
    reads the clients' memories, which are on its disk in a simulation only: in a deployment they
    never leave the clients, and none is measured.

    Parameters
    ----------
    memories : mapping from partition id to str
        Digests of the memories.
    """
    workspace, counts = state.workspace, label_counts(state.workspace)
    splits = dict(zip(("val", "test"), workspace.evaluation_sets, strict=True))
    if workspace.config.measure_test == "never":
        del splits["test"]
    state.memory.load_head(state.head)
    own: dict[str, list[Floats]] = {split: [] for split in splits}
    measured: list[int] = []
    unread = diverged = 0
    for client in sorted(memories):  # one at a time: a model may be large
        try:
            weights = state.memory.recall(client, memories[client])[PERSONAL]
        except MemoryLostError:
            unread += 1
            continue
        if not weights.isfinite().all():
            diverged += 1
            continue
        setup = state.setup(client)
        workspace.weights.load(state.weights)
        load_weights(workspace, weights, state.memory.mask(setup.up or setup.down))
        measured.append(client)
        for split, images in splits.items():
            own[split].append(recalls(workspace, images, counts[client]))
    figures = {"clients": len(measured), "unread": unread, "diverged": diverged}
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


def _mean(values: Floats) -> float | None:
    """Return the mean of the values that are known, None if there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
