"""The run: head, mask, start, training, round by round; it can go on from any round.

Flower's `Strategy.start` always counts from round 1; this loop calls the same hooks of a strategy,
and evaluates, records and checkpoints between them.
"""

from typing import Any

from flwr.serverapp import Grid

from fedta_app.client_memory import forget_run
from fedta_app.config import RunConfig
from fedta_app.partition.figure import save_partition_figure
from fedta_app.partition.schemes import class_counts, partition_digest
from fedta_app.runs.checkpoint import Checkpoint
from fedta_app.runs.session import RunSession, State, run_facts
from fedta_app.training.workspace import Workspace, shared_workspace
from server_app.head_phases import ProbeHead, RidgeHead
from server_app.mask_phases import mask_phase
from server_app.phases import Phase, Start, Train
from server_app.state import ServerState
from strategies import discover_nodes


def run_rounds(grid: Grid, config: RunConfig) -> None:
    """Run a federated training from its start, or its last checkpoint, to its end."""
    nodes = discover_nodes(grid, config.num_clients, config.clients_per_node)
    workspace = shared_workspace(config.with_values(num_clients=len(nodes)))
    state = ServerState.of(grid, nodes, workspace)
    phases = make_phases(state)
    # The configuration of the user: num-clients = 0 stays 0 in config.toml and in comparisons.
    session = RunSession(
        config,
        total_steps=sum(phase.num_rounds for phase in phases) - 1,
        facts=federated_facts(workspace),
        notes=state.notes,
    )
    try:
        save_partition(workspace, session)
        FederatedRun(state, phases, session).run()
    except BaseException as error:
        session.fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        forget_run()


def make_phases(state: ServerState) -> list[Phase]:
    """Return the phases of the configuration, in their order."""
    config = state.config
    phases: list[Phase] = []
    if config.head != "random":
        phases.append(RidgeHead(state) if config.head == "ridge" else ProbeHead(state))
    if config.mask_rule != "none":
        phases.append(mask_phase(state))
    return [*phases, Start(state), Train(state)]


def federated_facts(workspace: Workspace) -> dict[str, Any]:
    """Return what summary.json says of the run, the partition included."""
    facts = run_facts(workspace)
    facts["identity"]["partition-sha256"] = partition_digest(workspace.partitions)
    return {**facts, "num-clients": len(workspace.partitions)}


def save_partition(workspace: Workspace, session: RunSession) -> None:
    """Save the figure of clients and classes."""
    labels = workspace.data.train.labels.cpu().numpy()
    counts = class_counts(labels, workspace.partitions, workspace.data.num_classes)
    save_partition_figure(session.directory.path / "partition.png", counts)


class FederatedRun:
    """Goes through the phases, with a record and a checkpoint after every round."""

    def __init__(self, state: ServerState, phases: list[Phase], session: RunSession) -> None:
        self.state = state
        self.phases = phases
        self.session = session
        self._phase = 0

    def run(self) -> None:
        """Run the rounds that are left."""
        if self.session.checkpoint:
            self._restore(self.session.checkpoint)
        while (phase := self._next_phase()) is not None:
            if reason := self.session.stop_reason():
                self.session.finish("stopped", reason, self._state, self.state.sha256())
                return
            self._advance(phase)
        self.session.finish("finished", "", self._state, self.state.sha256())

    def _next_phase(self) -> Phase | None:
        while self.phases[self._phase].round == self.phases[self._phase].num_rounds:
            if self._phase == len(self.phases) - 1:
                return None
            self._phase += 1
        return self.phases[self._phase]

    def _advance(self, phase: Phase) -> None:
        if phase.name == "start":
            self.session.initial_sha256 = self.state.sha256()
        row = phase.run_round(phase.round + 1)
        phase.round += 1
        self.session.add(row, self._state)

    def _state(self) -> State:
        phase = self.phases[self._phase]
        tensors = {**self.state.tensors(), **phase.tensors()}
        position = {"phase": self._phase, "round": phase.round}
        return tensors, {**position, "server": self.state.to_json()}

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._phase = int(checkpoint.state["phase"])
        phase = self.phases[self._phase]
        phase.round = int(checkpoint.state["round"])
        self.state.restore(checkpoint.tensors, checkpoint.state["server"])
        phase.restore(checkpoint.tensors)
