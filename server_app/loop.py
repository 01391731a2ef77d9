"""A federated run: its phases (head, mask, start, training) in fedta's round loop.

Flower's `Strategy.start` cannot resume, since it always counts from round 1. The phases call the
same hooks of a strategy, and `fedta_app.runs.loop` records and checkpoints between them.
"""

from typing import Any

from flwr.serverapp import Grid

from engine.client_memory import forget_run, forget_unnamed, memories_path
from fedta_app.config import RunConfig
from fedta_app.errors import CheckpointError, first_line
from fedta_app.files import unless_refused
from fedta_app.pace import Pace
from fedta_app.partition.figure import save_partition_figure
from fedta_app.partition.schemes import partition_digest
from fedta_app.partition.sharing import label_distances
from fedta_app.runs.checkpoint import kept_values
from fedta_app.runs.directory import run_path
from fedta_app.runs.finished_model import ModelKeeper
from fedta_app.runs.loop import Part, Phase, RoundLoop
from fedta_app.runs.session import RunSession
from fedta_app.training.evaluation import Start
from fedta_app.training.facts import label_counts, model_facts, run_facts
from fedta_app.training.workspace import Workspace, shared_workspace
from server_app.head_phases import ProbeHead, RidgeHead
from server_app.mask_phases import mask_phase
from server_app.phases import Train, make_strategy
from server_app.privacy import privacy_warnings
from server_app.state import ServerState
from server_app.superclient_phase import Superclients
from strategies import FederatedStrategy, SequentialStrategy, discover_nodes


def run_rounds(grid: Grid, config: RunConfig) -> None:
    """Run a federated training to its end, from its last checkpoint if there is one."""
    nodes = discover_nodes(grid, config.num_clients, config.clients_per_node, config.round_timeout)
    workspace = shared_workspace(config.with_values(num_clients=len(nodes)))
    try:
        state = ServerState.of(grid, nodes, workspace)
        pace = Pace(workspace.config, [len(part) for part in workspace.partitions])
        strategy = make_strategy(state, pace)
        phases = make_phases(state, strategy, pace)
        # `config`, not `state.config`: config.toml keeps num-clients = 0 as the user wrote it.
        session = RunSession(
            config,
            total_rows=sum(phase.num_rounds for phase in phases),
            facts=federated_facts(workspace),
            notes=state.notes,
            saved=lambda: forget_memories(workspace, strategy) if strategy.memories else None,
        )
        with session.recording_failure():
            workspace.fill_cache()
            forget_memories(workspace, strategy)
            save_partition(workspace, session)
            parts: dict[str, Part] = {"server": state, "algorithm": strategy}
            keeper = ModelKeeper(session, state.model, model_facts(workspace))
            RoundLoop(phases, parts, session, keeper, state.sha256).run()
    finally:
        forget_run()


def make_phases(state: ServerState, strategy: FederatedStrategy, pace: Pace) -> list[Phase]:
    """Return the phases that the configuration asks for, in their order."""
    config = state.config
    phases: list[Phase] = []
    if config.head != "random":
        phases.append(RidgeHead(state) if config.head == "ridge" else ProbeHead(state))
    if config.mask_rule != "none":
        phases.append(mask_phase(state))
    if isinstance(strategy, SequentialStrategy):
        phases.append(Superclients(state, strategy))
    return [*phases, Start(state.workspace, state.measure), Train(state, strategy, pace)]


def federated_facts(workspace: Workspace) -> dict[str, Any]:
    """Return what summary.json says of weights, data, device and partition."""
    facts = run_facts(workspace)
    facts["identity"]["partition-sha256"] = partition_digest(workspace.partitions)
    counts = label_counts(workspace)
    sizes = counts.sum(axis=1)
    about = {
        "images-per-client": [int(sizes.min()), float(sizes.mean()), int(sizes.max())],
        "label-distance": float(label_distances(counts).mean()),
    }
    facts["warnings"] += privacy_warnings(workspace.config)
    return {**facts, "num-clients": len(counts), "partition": about}


def save_partition(workspace: Workspace, session: RunSession) -> None:
    """Save the figure that shows how many images of each class the clients hold."""
    with unless_refused():
        save_partition_figure(session.directory.path / "partition.png", label_counts(workspace))


def forget_memories(workspace: Workspace, strategy: FederatedStrategy) -> None:
    """Delete the clients' memories that no kept checkpoint refers to."""
    named: dict[int, set[str]] = {}
    folder = run_path(workspace.config) / "checkpoint"
    for state in kept_values(folder):
        try:
            for partition_id, digest in state["parts"]["algorithm"]["memories"].items():
                named.setdefault(int(partition_id), set()).add(digest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"a checkpoint in {folder} does not say which memories it needs "
                f"({first_line(error)}): start the run over, with resume = false"
            ) from error
    strategy.keep_memories(named)
    forget_unnamed(memories_path(workspace), named)
