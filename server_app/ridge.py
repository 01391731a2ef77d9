"""The ridge head from the clients' sums, before training and, where it is refreshed, during it."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.heads.ridge import RidgeStatistics
from fedta_app.secure import FEWEST_IN_A_SUM
from fedta_app.training.head_fit import empty_statistics, fit_head, longest_feature
from server_app.missing import forget_missing, settle_missing
from server_app.state import ServerState
from strategies.reply_checks import check_statistics, check_vectors


def groups_of(clients: Sequence[int], size: int, *, secure: bool = False) -> list[list[int]]:
    """Return clients in groups of this size; what is left joins the last one if it is too few.

    Of one client alone there is no sum, and from a secure sum of two each can take itself away.

    >>> groups_of(range(7), 3)
    [[0, 1, 2], [3, 4, 5, 6]]
    >>> groups_of(range(8), 3, secure=True)
    [[0, 1, 2], [3, 4, 5, 6, 7]]
    """
    groups = [list(clients[first : first + size]) for first in range(0, len(clients), size)]
    if len(groups) > 1 and len(groups[-1]) < (FEWEST_IN_A_SUM if secure else 2):
        left = groups.pop()
        groups[-1] += left
    return groups


# Of the mean square of a client's features, times the largest square that the server has seen.
_LONGEST = 4.0


def among(config: RunConfig, clients: Sequence[int]) -> dict[str, str]:
    """Return what clients are told of who is asked: an image that they share counts on one."""
    return {"asked": " ".join(map(str, clients))} if config.shared_fraction else {}


class RidgeSums:
    """The sums over the features of the clients that have answered so far."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.statistics = empty_statistics(state.workspace)
        forget_missing(state, "head")  # those of a head before this one

    @cached_property
    def longest(self) -> float:
        """The largest squared length of features of the server's images, not finite if one is."""
        self.state.workspace.weights.load(self.state.weights)
        return longest_feature(self.state.workspace)

    def __len__(self) -> int:
        """Return the length of the vector that a client sends."""
        return self.statistics.to_vector().numel()

    def add(self, clients: Sequence[int], vectors: Iterable[tuple[int, Tensor]]) -> None:
        """Add the sums that these clients sent, given with their partition ids.

        Raises
        ------
        RunError
            When one is missing: without it, the head would depend on which ones are. The key
            `missing-clients` can allow it.
        """
        for _, vector in vectors:
            self.statistics = self.statistics + self.unpacked(vector)
        needs = "the head needs the sums of every client"
        settle_missing(self.state, clients, "head", needs)

    def check(self, client: int, vector: Tensor) -> None:
        """Raise ReplyError unless a vector holds sums that features of the client could have."""
        check_vectors({"sums": vector}, {"sums": len(self)}, torch.float64)
        longest = _LONGEST * self.longest
        check_statistics(self.unpacked(vector), self.state.images_of(client), longest)

    def unpacked(self, vector: Tensor) -> RidgeStatistics:
        """Return the statistics that a client or a checkpoint packed."""
        features, classes = self.statistics.gram.shape[0], len(self.statistics.class_counts)
        return RidgeStatistics.from_vector(vector, features, classes)

    def solve(self) -> None:
        """Solve for the head and freeze it.

        Raises
        ------
        RunError
            When the sums are those of no image.
        """
        state = self.state
        if not self.statistics.count:
            raise RunError("the head has no image to be made from: no client sent its sums")
        # Its strength and temperature come from validation images under the weights of now.
        state.workspace.weights.load(state.weights)
        refreshed = state.notes.get("head", {}).get("solved", 0)
        fitted = fit_head(state.workspace, self.statistics, at_start=not refreshed)
        state.set_head(fitted.vector)
        state.notes["head"] = {
            **fitted.facts(), "images": self.statistics.count, "solved": refreshed + 1,
        }  # fmt: skip
