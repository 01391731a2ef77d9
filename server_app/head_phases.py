"""The phases that make the head before anything else is trained."""

import time
from typing import Any

import torch
from flwr.app import ConfigRecord
from torch import Tensor

from engine.records import number as number_of
from engine.transport import MEMORY, pack, unpack
from fedta_app.errors import RunError
from fedta_app.heads.ridge import RidgeStatistics
from fedta_app.runs.loop import check_keys
from fedta_app.runs.metrics import Row
from fedta_app.training.head_fit import empty_statistics, fit_head
from server_app.phases import FederatedPhase
from server_app.state import ServerState
from strategies import FedAvg


class RidgeHead(FederatedPhase):
    """Every client sends the sums of its features once; the head follows in closed form.

    A round asks as many clients as a training round does. The head does not depend on how the
    data are divided, nor on how many rounds it takes (fedta_app.heads.ridge).
    """

    name = "head"

    def __init__(self, state: ServerState) -> None:
        clients = len(state.exchange.nodes)
        self._per_round = max(1, round(state.config.fraction_train * clients))
        super().__init__(state, -(-clients // self._per_round))
        self._statistics = empty_statistics(state.workspace)

    def run_round(self, number: int) -> Row:
        """Add the next clients' sums; after the last ones, solve."""
        began = time.perf_counter()
        state = self.state
        first = (number - 1) * self._per_round
        chosen = list(range(first, min(first + self._per_round, len(state.exchange.nodes))))
        state.exchange.begin_round()
        messages = state.exchange.messages(chosen, "train.head")
        for _, reply in state.exchange.in_order(chosen, state.send(messages)):
            self._add(unpack(reply.content.array_records["arrays"]))
        if state.exchange.costs.errors:
            # A head without some clients would depend on who they were.
            raise RunError(f"the head needs every client: {state.exchange.costs.errors[0]}")
        if number == self.num_rounds:
            self._solve()
        return self.row(number, began)

    def _add(self, vector: Tensor) -> None:
        features, classes = self._statistics.gram.shape[0], len(self._statistics.class_counts)
        self._statistics = self._statistics + RidgeStatistics.from_vector(vector, features, classes)

    def _solve(self) -> None:
        fitted = fit_head(self.state.workspace, self._statistics)
        self.state.set_head(fitted.vector)
        self.state.notes["head"] = {
            "kind": "ridge",
            "ridge": fitted.ridge,
            "temperature": fitted.temperature,
            "images": self._statistics.count,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far."""
        return {"statistics": self._statistics.to_vector()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums so far."""
        check_keys(state, ("statistics",), "head")
        features, classes = self._statistics.gram.shape[0], len(self._statistics.class_counts)
        self._statistics = RidgeStatistics.from_vector(state["statistics"], features, classes)


class ProbeHead(FederatedPhase):
    """A linear probe by FedAvg on the head alone, over a frozen backbone."""

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
        )

    def run_round(self, number: int) -> Row:
        """Train the head for one round; after the last one, freeze it."""
        began = time.perf_counter()
        state = self.state
        arrays = pack(self._head, MEMORY)
        messages = self._strategy.configure_train(number, arrays, ConfigRecord(), state.grid)
        arrays, metrics = self._strategy.aggregate_train(number, state.send(messages))
        self._head.copy_(unpack(arrays))
        if number == self.num_rounds:
            state.set_head(self._head.to(torch.float32))
            state.notes["head"] = {"kind": "probe", "rounds": self.num_rounds}
        return self.row(number, began, loss=number_of(metrics, "train-loss"))

    def state_dict(self) -> dict[str, Any]:
        """Return the head so far."""
        return {"head": self._head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the head so far."""
        check_keys(state, ("head",), "probe head")
        self._head.copy_(state["head"])
