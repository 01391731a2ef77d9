"""The phases that make the head before anything else is trained."""

from typing import Any

import torch

from fedta_app.runs.loop import check_keys, check_tensor
from server_app.phases import FederatedPhase
from server_app.ridge import RidgeSums, groups_of
from server_app.state import ServerState
from strategies import FedAvg


class RidgeHead(FederatedPhase):
    """Every client sends the sums of its features once; the head follows in closed form.

    A round asks as many clients as a training round does. The head depends neither on how the
    data are divided nor on how many rounds it takes (`fedta_app.heads.ridge`).
    """

    name = "head"

    def __init__(self, state: ServerState) -> None:
        everybody, secure = range(len(state.exchange.nodes)), state.config.secure_aggregation
        self._groups = groups_of(everybody, state.clients_per_round, secure=secure)
        super().__init__(state, len(self._groups))
        self._sums = RidgeSums(state)

    def work(self, number: int) -> None:
        """Add the sums of the next clients; after the last ones, solve."""
        self.add_feature_sums(self._sums, self._groups[number - 1], number)
        if number == self.num_rounds:
            self._sums.solve()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {"statistics": self._sums.statistics.to_vector()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums so far."""
        check_keys(state, ("statistics",), "head")
        so_far = self._sums.statistics.to_vector()
        stored = check_tensor(state["statistics"], so_far, "sums of features")
        self._sums.statistics = self._sums.unpacked(stored)


class ProbeHead(FederatedPhase):
    """A linear probe: FedAvg on the head alone, over a frozen backbone."""

    name = "head"

    def __init__(self, state: ServerState) -> None:
        super().__init__(state, state.config.probe_rounds)
        assert state.workspace.head is not None
        self._head = state.workspace.head.vector.clone()
        self._strategy = FedAvg(
            state.exchange,
            fraction_train=state.config.fraction_train,
            seed=state.config.seed,
            learning_rate=lambda server_round: state.config.probe_lr,
            message_type="train.probe",
            **state.limits(),
        )

    def work(self, number: int) -> float | None:
        """Train the head for one round; after the last one, freeze it."""
        head, loss = self.train_round(self._strategy, number, self._head)
        self._head.copy_(head)
        if number == self.num_rounds:
            self.state.set_head(self._head.to(torch.float32))
            self.state.notes["head"] = {"kind": "probe", "rounds": self.num_rounds}
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the head so far."""
        return {"head": self._head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the head so far."""
        check_keys(state, ("head",), "probe head")
        self._head.copy_(check_tensor(state["head"], self._head, "head's weights"))
