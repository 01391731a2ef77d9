"""The centralised baseline: the same model, data and step as a client's, on all the images at once.

A round is `local-steps` steps, or one epoch where that is 0; the optimizer keeps its momentum from
round to round, as a client's does not.
"""

import time

from fedta_app.config import RunConfig
from fedta_app.evaluation import measure
from fedta_app.flat import weights_sha256
from fedta_app.metrics import Figures, Row
from fedta_app.schedule import learning_rate
from fedta_app.session import RunSession, State, run_facts
from fedta_app.training import make_optimizer, train_steps
from fedta_app.workspace import Workspace, shared_workspace


def run_centralized(config: RunConfig) -> None:
    """Train from the start, or from the last checkpoint, to the last round."""
    workspace = shared_workspace(config)
    facts = run_facts(workspace)
    session = RunSession(config, total_steps=config.num_server_rounds, facts=facts)
    try:
        CentralizedRun(workspace, session).run()
    except BaseException as error:
        session.fail(f"{type(error).__name__}: {error}")
        raise


class CentralizedRun:
    """The baseline between rounds: the model's weights and the optimizer's momentum."""

    def __init__(self, workspace: Workspace, session: RunSession) -> None:
        self.workspace = workspace
        self.session = session
        self.config = workspace.config
        self.optimizer = make_optimizer(self.config, workspace.model)
        self.round = 0

    def run(self) -> None:
        """Measure round 0 or restore the last checkpoint, then run the rounds that are left."""
        if self.session.checkpoint:
            self._restore()
        else:
            self.session.initial_sha256 = weights_sha256(self.workspace.weights.vector)
            self.session.add(Row(0, "start", **self._measure()), self._state)
        while self.round < self.config.num_server_rounds:
            if reason := self.session.stop_reason():
                self._finish("stopped", reason)
                return
            self._train_round(self.round + 1)
        self._finish("finished", "")

    def _train_round(self, round_: int) -> None:
        began = time.perf_counter()
        lr = learning_rate(self.config, round_)
        images = self.workspace.data.train
        loss = train_steps(self.workspace, self.optimizer, images, lr=lr, key=(round_,))
        self.round = round_
        seconds = round(time.perf_counter() - began, 4)
        due = round_ == self.config.num_server_rounds or round_ % self.config.eval_every == 0
        figures = self._measure() if due else Figures()
        row = Row(round_, "train", train_loss=loss, seconds=seconds, **figures)
        self.session.add(row, self._state)

    def _measure(self) -> Figures:
        return measure(self.workspace, self.workspace.weights.vector)

    def _state(self) -> State:
        tensors = {"weights": self.workspace.weights.vector}
        for name, parameter in self.workspace.model.named_parameters():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum/{name}"] = buffer
        return tensors, {"round": self.round}

    def _restore(self) -> None:
        assert self.session.checkpoint is not None
        tensors = self.session.checkpoint.tensors
        self.workspace.weights.load(tensors["weights"])
        for name, parameter in self.workspace.model.named_parameters():
            if f"momentum/{name}" in tensors:
                buffer = tensors[f"momentum/{name}"].to(parameter.device)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.round = int(self.session.checkpoint.state["round"])

    def _finish(self, status: str, reason: str) -> None:
        sha256 = weights_sha256(self.workspace.weights.vector)
        self.session.finish(status, reason, self._state, sha256)
