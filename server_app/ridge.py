"""The ridge head from the clients' sums, before training and, where it is refreshed, during it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedta_app.errors import RunError
from fedta_app.heads.ridge import RidgeStatistics
from fedta_app.training.head_fit import empty_statistics, fit_head
from server_app.state import ServerState
from strategies.reply_checks import check_statistics, check_vectors


class RidgeSums:
    """The sums over the features of the clients that have answered so far."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.statistics = empty_statistics(state.workspace)

    def add(self, vectors: Iterable[tuple[int, Tensor]]) -> None:
        """Add the sums of clients, given with their partition ids.

        Raises
        ------
        RunError
            When a client failed: without it, the head would depend on which ones did.
        """
        for _, vector in vectors:
            self.statistics = self.statistics + self.unpacked(vector)
        if self.state.exchange.costs.errors:
            raise RunError(f"the head needs every client: {self.state.exchange.costs.errors[0]}")

    def check(self, vector: Tensor) -> None:
        """Raise ReplyError unless a vector holds the sums of a client's features."""
        size = self.statistics.to_vector().numel()
        check_vectors({"sums": vector}, {"sums": size}, torch.float64)
        check_statistics(self.unpacked(vector), len(self.state.workspace.data.train))

    def unpacked(self, vector: Tensor) -> RidgeStatistics:
        """Return the statistics that a client or a checkpoint packed."""
        features, classes = self.statistics.gram.shape[0], len(self.statistics.class_counts)
        return RidgeStatistics.from_vector(vector, features, classes)

    def solve(self) -> None:
        """Solve for the head and freeze it."""
        state = self.state
        # Its strength and temperature come from validation images under the weights of now.
        state.workspace.weights.load(state.weights)
        refreshed = state.notes.get("head", {}).get("solved", 0)
        fitted = fit_head(state.workspace, self.statistics, at_start=not refreshed)
        state.set_head(fitted.vector)
        state.notes["head"] = {
            **fitted.facts(), "images": self.statistics.count, "solved": refreshed + 1,
        }  # fmt: skip
