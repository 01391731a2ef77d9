"""The phase that makes FedSeq's superclients from the class counts of all clients."""

import torch
from torch import Tensor

from fedta_app.errors import RunError
from fedta_app.partition.superclients import group_clients
from server_app.missing import settle_missing
from server_app.phases import FederatedPhase
from server_app.state import ServerState
from strategies import SequentialStrategy
from strategies.reply_checks import check_counts


class Superclients(FederatedPhase):
    """Every client sends its number of images of each class; groups follow from these.

    The counts tell the server a client's labels, as the sums of a ridge head do.
    """

    name = "superclients"

    def __init__(self, state: ServerState, strategy: SequentialStrategy) -> None:
        super().__init__(state, 1)
        self._strategy = strategy

    def work(self, number: int) -> None:
        """Ask for the counts, and group.

        Raises
        ------
        RunError
            When a client is missing: without it, the groups would depend on which ones are. The
            key `missing-clients` can allow it; such a client is in no group, and does not train.
        """
        state = self.state
        clients = list(state.taking_part())
        found = self.ask(clients, "train.counts", self._check)
        counts = {client: vector.clone() for client, vector in found}
        needs = "superclients need the class counts of every client"
        settle_missing(state, clients, "counts", needs)
        if not counts:
            raise RunError("there are no superclients: no client sent its class counts")
        rows, there = torch.stack([*counts.values()]).numpy(), [*counts]
        groups = group_clients(rows, state.config.superclient_clients)
        # Nothing depends on how groups are listed.
        self._strategy.superclients = sorted(
            sorted(there[row] for row in group) for group in groups
        )
        sizes = [len(group) for group in groups]
        state.notes["superclients"] = {"number": len(groups), "largest": max(sizes)}

    def _check(self, client: int, counts: Tensor) -> None:
        state = self.state
        check_counts(counts, state.workspace.data.num_classes, state.images_of(client))
