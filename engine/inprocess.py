"""The in-process engine: ServerApp and ClientApp in one process, without Ray or a SuperLink.

It runs the same apps as `flwr run`, without serialising messages: for one GPU, where clients take
turns anyway, and for notebooks, debuggers and tests.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

# Flower does not document these as public; only this module uses them.
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from fedta_app.config import RunConfig
from fedta_app.finished.reading import Run
from fedta_app.runs.directory import run_path

ONE_PROCESS = "one-process"  # in a node's configuration: server and clients share this process
_SERVER_NODE = 1
_FIRST_CLIENT_NODE = 2


class InProcessGrid(Grid):
    """A grid that answers each message by calling the ClientApp.

    `send_and_receive` is lazy and keeps the order of the messages: a reply is aggregated before
    the next client starts, so that all clients can use the same buffers.
    """

    def __init__(
        self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, Any]
    ) -> None:
        self._client_app = client_app
        self._num_nodes = num_nodes
        self._run_config = dict(run_config)
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}
        self._run = cast(FlowerRun, None)
        TaskIdentity.task_id = TaskIdentity.run_id = 1
        TaskIdentity.node_id = _SERVER_NODE

    def set_run(self, run: FlowerRun) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> FlowerRun:
        """The run that was set."""
        return self._run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Create a message; Flower deprecates this in favour of the constructor."""
        return Message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """Return the id of every node."""
        return range(_FIRST_CLIENT_NODE, _FIRST_CLIENT_NODE + self._num_nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the ClientApp on every message and keep the replies until they are pulled."""
        identifiers = []
        for message in messages:
            reply = self._answer(message)
            self._replies[message.metadata.message_id] = reply
            identifiers.append(message.metadata.message_id)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages and forget them."""
        return [self._replies.pop(key) for key in list(message_ids) if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield the reply to each message in turn; the ClientApp runs when its reply is asked for.

        `timeout` is ignored, since the clients run in this process.
        """
        return (self._answer(message) for message in messages)

    def _answer(self, message: Message) -> Message:
        # Flower's SuperLink would give messages their ids.
        message.metadata.__dict__["_message_id"] = secrets.token_hex(8)
        node_id = message.metadata.dst_node_id
        context = self._context(node_id)
        try:
            reply = self._client_app(message=message, context=context)
        except Exception as error:
            # Flower's other engines also answer with an error where a client fails.
            reply = Message(
                Error(code=0, reason=f"{type(error).__name__}: {error}"), reply_to=message
            )
        if context.state:
            self._contexts[node_id] = context
        reply.metadata.__dict__["_message_id"] = secrets.token_hex(8)
        return reply

    def _context(self, node_id: int) -> Context:
        """Return the node's stored context if it has state, or else a new one.

        Storing ten thousand empty contexts would cost more than the run.
        """
        return self._contexts.get(node_id) or Context(
            run_id=1,
            node_id=node_id,
            node_config={
                "partition-id": node_id - _FIRST_CLIENT_NODE,
                "num-partitions": self._num_nodes,
                ONE_PROCESS: True,
            },
            state=RecordDict(),
            run_config=self._run_config,
        )


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    run_config: Mapping[str, Any],
    num_supernodes: int,
) -> Run:
    """Run an app to its end in this process and return the run, with its figures.

    Parameters
    ----------
    server_app, client_app
        Those of `server_app.app` and `client_app.app`, or others.
    run_config : mapping
        The keys of the configuration that differ from their defaults.
    num_supernodes : int
        Number of nodes, each of which is a client.

    Returns
    -------
    Run
        What the run directory holds: `metrics`, `final`, `best`, `mask`, `model(...)`, `path`.
        Nothing is read before it is asked for.

    Raises
    ------
    Exception
        Whatever the ServerApp raises.
    """
    grid = InProcessGrid(client_app, num_supernodes, run_config)
    context = Context(
        run_id=1,
        node_id=_SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    server_app(grid=grid, context=context)
    place = {key: run_config[key] for key in ("name", "seed", "results-dir") if key in run_config}
    return Run(run_path(RunConfig.from_mapping(place)))
