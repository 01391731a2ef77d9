"""Measurements of how the clients' updates interfere, every `interference-every` rounds.

They read the clients' images on the server, which a simulation can and a deployment cannot.
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from fedta_app.analysis.interference import (
    MOST_IMAGES,
    Interference,
    loss_change_matrix,
    save_interference_figure,
    save_matrix,
    summarise,
)
from fedta_app.data.loading import ImageSet
from fedta_app.files import unless_refused
from fedta_app.runs.directory import run_path
from fedta_app.runs.metrics import write_csv
from fedta_app.runs.records import checked
from fedta_app.seeding import torch_generator
from fedta_app.training.head_fit import pooled_head
from fedta_app.training.steps import evaluate
from server_app.state import ServerState

_COLUMNS = [entry.name for entry in fields(Interference)]


class InterferenceLog:
    """The rows of interference.csv, and the updates of the round that is measured.

    Parameters
    ----------
    state : ServerState
    rate : callable
        The learning rate of a round.
    """

    def __init__(self, state: ServerState, rate: Callable[[int], float]) -> None:
        self._state, self._rate = state, rate
        self._rows: dict[int, Interference] = {}
        self._start, self._head = torch.empty(0), ""
        self._vectors: dict[int, Tensor] = {}

    def due(self, number: int) -> bool:
        """Return whether a round is measured: the first is, and every n-th after it."""
        every = self._state.config.interference_every
        return every > 0 and (number - 1) % every == 0

    def begin(self) -> None:
        """Remember the weights before the round, and the head that its clients train under."""
        self._start, self._head = self._state.weights.clone(), self._state.head
        self._vectors = {}

    def watch(self, partition_id: int, update: Tensor, trained: Tensor | None) -> None:
        """Keep a client's update (P,)."""
        self._vectors[partition_id] = update.clone()

    def measure(self, number: int) -> None:
        """Measure after the round, and write the row, the matrix and the figure."""
        state, folder = self._state, run_path(self._state.config)
        state.memory.load_head(self._head)
        clients = sorted(self._vectors)
        if len(clients) < 2:  # the others failed
            print(
                f"interference of round {number} is not measured: it needs the updates of two "
                f"clients, and {len(clients)} came",
                flush=True,
            )
            return
        vectors = [state.whole(self._vectors[client]) for client in clients]
        images = [self._images(client) for client in clients]

        def losses(weights: Tensor) -> list[float]:
            state.workspace.weights.load(weights)
            return [evaluate(state.workspace, part)[0] for part in images]

        matrix = loss_change_matrix(self._start, vectors, losses)
        self._rows[number] = summarise(
            number, self._rate(number), matrix, vectors, **self._accuracies()
        )
        write_csv(folder / "interference.csv", list(self._rows.values()), _COLUMNS)
        save_matrix(folder / f"interference-{number:04d}.csv", matrix, clients)
        with unless_refused():
            save_interference_figure(folder / "interference.png", self._rows, matrix, clients)
        self._vectors = {}

    def _images(self, client: int) -> ImageSet:
        """Return training images of a client, without augmentation: all, or a fixed draw."""
        workspace = self._state.workspace
        positions = workspace.client_positions(client)
        generator = torch_generator(workspace.config.seed, "interference", client)
        drawn = torch.randperm(len(positions), generator=generator)[:MOST_IMAGES]
        return workspace.plain.train.subset(positions[drawn.to(positions.device)])

    def _accuracies(self) -> dict[str, float]:
        """Return the validation accuracy with the head in use, and with one solved afresh."""
        state, workspace = self._state, self._state.workspace
        state.memory.load_head(state.head)
        workspace.weights.load(state.weights)
        validation = workspace.evaluation_sets[0]
        found = {"head_accuracy": evaluate(workspace, validation)[1]}
        if workspace.head is not None and state.config.head == "ridge":
            in_use = workspace.head.vector.clone()
            try:
                workspace.head.load(pooled_head(workspace).vector)
                found["fresh_head_accuracy"] = evaluate(workspace, validation)[1]
            finally:
                workspace.head.load(in_use)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"interference": [asdict(row) for row in self._rows.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the rows of an earlier session, and write them anew."""
        rows = [checked(Interference, row) for row in state.get("interference", [])]
        self._rows = {row.round: row for row in rows}
        if rows:
            write_csv(run_path(self._state.config) / "interference.csv", rows, _COLUMNS)
