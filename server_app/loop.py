"""A federated run: its phases (head, mask, start, training) in fedta's round loop.

Flower's `Strategy.start` cannot resume, since it always counts from round 1. The phases call the
same hooks of a strategy, and `fedta_app.runs.loop` records and checkpoints between them.
"""

from typing import Any

from flwr.serverapp import Grid

from engine.client_memory import forget_run, forget_unnamed, memories_path
from engine.deployment import is_deployment
from fedta_app.config import RunConfig
from fedta_app.errors import NO_RESUME, CheckpointError, ConfigError, first_line
from fedta_app.files import unless_refused
from fedta_app.pace import Pace
from fedta_app.partition.figure import save_partition_figure
from fedta_app.partition.schemes import partition_digest
from fedta_app.partition.sharing import label_distances
from fedta_app.runs.checkpoint import kept_values
from fedta_app.runs.directory import run_path
from fedta_app.runs.finished_model import ModelKeeper
from fedta_app.runs.loop import Part, Phase, RoundLoop, named_by_client
from fedta_app.runs.session import RunSession
from fedta_app.training.datasets import find_dataset, knows_clients, of_nodes
from fedta_app.training.evaluation import Start
from fedta_app.training.facts import label_counts, model_facts, run_facts
from fedta_app.training.workspace import shared_workspace
from server_app.head_phases import ProbeHead, RidgeHead
from server_app.mask_phases import mask_phase
from server_app.phases import Train, make_strategy
from server_app.privacy import privacy_warnings
from server_app.state import ServerState
from server_app.superclient_phase import Superclients
from strategies import FederatedStrategy, SequentialStrategy, discover_nodes
from strategies.node_answers import Terms, read_nodes_file


def run_rounds(grid: Grid, config: RunConfig) -> None:
    """Run a federated training to its end, from its last checkpoint if there is one."""
    nodes = discover_nodes(
        grid, config.num_clients, config.clients_per_node, config.round_timeout, terms(grid, config)
    )
    workspace = shared_workspace(config.with_values(num_clients=len(nodes)), None)
    try:
        state = ServerState.of(grid, nodes, workspace)
        pace = Pace(workspace.config, state.held)
        strategy = make_strategy(state, pace)
        phases = make_phases(state, strategy, pace)
        # `config`, not `state.config`: config.toml keeps num-clients = 0 as the user wrote it.
        session = RunSession(
            config,
            total_rows=sum(phase.num_rounds for phase in phases),
            facts=federated_facts(state),
            notes=state.notes,
            saved=lambda: after_checkpoint(state, strategy, session),
        )
        with session.recording_failure():
            workspace.fill_cache()
            forget_unnamed_blobs(state, strategy)
            parts: dict[str, Part] = {"server": state, "algorithm": strategy}
            keeper = ModelKeeper(
                session, state.model, with_all_images(model_facts(workspace), state)
            )
            RoundLoop(phases, parts, session, keeper, state.sha256).run()
    finally:
        forget_run()


def terms(grid: Grid, config: RunConfig) -> Terms:
    """Return what a node has to be.

    Raises
    ------
    ConfigError
        When the nodes of a simulation should have images of their own, or a deployment is not told
        how many clients there are.
    DataError
        When the server has no folder of images, which says what the classes are.
    """
    if is_deployment(grid) and not config.num_clients:
        raise ConfigError(
            "num-clients = 0 is not allowed in a deployment, whose nodes come one after the other: "
            "it is the number of clients to wait for"
        )
    if not of_nodes(config):
        return Terms(read_nodes_file(config.nodes_file))
    if not is_deployment(grid):
        raise ConfigError(
            f"partition = '{config.partition}' is not allowed in a simulation, whose clients all "
            "read one data set: nodes have images of their own in a deployment only "
            "(docs/deployment.md)"
        )
    return Terms(read_nodes_file(config.nodes_file), find_dataset(config).class_names)


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


def federated_facts(state: ServerState) -> dict[str, Any]:
    """Return what summary.json says of weights, data, device and partition."""
    workspace, held = state.workspace, state.held
    facts = with_all_images(run_facts(workspace), state)
    about: dict[str, Any] = {
        "images-per-client": [min(held), sum(held) / len(held), max(held)],
        "label-distance": None,
    }
    if knows_clients(workspace.config):
        facts["identity"]["partition-sha256"] = partition_digest(workspace.partitions)
        about["label-distance"] = float(label_distances(label_counts(workspace)).mean())
    facts["warnings"] += privacy_warnings(workspace.config, deployed=state.deployed)
    return {**facts, "num-clients": len(held), "partition": about}


def with_all_images(facts: dict[str, Any], state: ServerState) -> dict[str, Any]:
    """Return facts that count the training images of nodes, which the server does not have."""
    if of_nodes(state.config):
        facts["data"]["training-images"] = sum(state.held)
    return facts


def after_checkpoint(state: ServerState, strategy: FederatedStrategy, session: RunSession) -> None:
    """Delete what no kept checkpoint names, and draw who holds what once a round was trained.

    Importing matplotlib and drawing would delay the first round.
    """
    if strategy.memories or state.old_heads:
        forget_unnamed_blobs(state, strategy)
    path = session.directory.path / "partition.png"
    trained = bool(session.rows) and session.rows[-1].phase == "train"
    if trained and knows_clients(state.config) and not path.exists():
        with unless_refused():
            save_partition_figure(path, label_counts(state.workspace))


def forget_unnamed_blobs(state: ServerState, strategy: FederatedStrategy) -> None:
    """Delete the clients' memories, and heads before a refresh, that no kept checkpoint names."""
    memories: dict[int, set[str]] = {}
    heads = {state.head}
    folder = run_path(state.config) / "checkpoint"
    for kept in kept_values(folder):
        try:
            heads.add(kept["parts"]["server"]["head"])
            named = named_by_client(kept["parts"]["algorithm"]["memories"], str)
            for partition_id, digest in named.items():
                memories.setdefault(partition_id, set()).add(digest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"a checkpoint in {folder} does not say which memories it needs "
                f"({first_line(error)}): start the run over ({NO_RESUME})"
            ) from error
    if state.config.head_refresh:  # an earlier session may have ended before it deleted them
        state.old_heads |= heads - {"", state.head}
    strategy.keep_memories(memories)
    forget_unnamed(memories_path(state.workspace), memories)
    for digest in state.old_heads - heads:
        state.memory.store.discard(digest)
    state.old_heads &= heads
