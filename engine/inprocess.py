"""The app in one process: Flower's ServerApp and ClientApp over a grid that calls the ClientApp.

No Ray, no SuperLink, no serialisation: for one GPU, where clients take turns anyway, and for
notebooks, debuggers and tests. The apps are the ones that `flwr run` runs, unchanged.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

# Not documented as public; this module is the only place that touches them.
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_SERVER_NODE = 1
_FIRST_CLIENT_NODE = 2


class InProcessGrid(Grid):
    """A grid whose nodes are contexts: a message sent is a call of the ClientApp.

    `send_and_receive` answers lazily and in the order of the messages: a reply is aggregated
    before the next client starts, so one client's buffers are enough for all.
    """

    def __init__(
        self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, Any]
    ) -> None:
        self._client_app = client_app
        self._num_nodes = num_nodes
        self._run_config = dict(run_config)
        self._contexts: dict[int, Context] = {}
        self._replies: dict[str, Message] = {}
        self._run = cast(Run, None)
        TaskIdentity.task_id = TaskIdentity.run_id = 1
        TaskIdentity.node_id = _SERVER_NODE

    def set_run(self, run: Run) -> None:
        """Keep the run that the grid is asked about."""
        self._run = run

    @property
    def run(self) -> Run:
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

        `timeout` is ignored: nobody else could answer.
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
            # What Flower makes of a client that fails: an error in place of a reply.
            reply = Message(
                Error(code=0, reason=f"{type(error).__name__}: {error}"), reply_to=message
            )
        if context.state:
            self._contexts[node_id] = context
        reply.metadata.__dict__["_message_id"] = secrets.token_hex(8)
        return reply

    def _context(self, node_id: int) -> Context:
        """Return a node's context: the one that holds its state, or else a new one.

        Keeping ten thousand that hold nothing would cost more than the run.
        """
        return self._contexts.get(node_id) or Context(
            run_id=1,
            node_id=node_id,
            node_config={
                "partition-id": node_id - _FIRST_CLIENT_NODE,
                "num-partitions": self._num_nodes,
            },
            state=RecordDict(),
            run_config=self._run_config,
        )


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    run_config: Mapping[str, Any],
    num_supernodes: int,
) -> None:
    """Run an app to its end in this process; what the ServerApp raises is raised here."""
    grid = InProcessGrid(client_app, num_supernodes, run_config)
    context = Context(
        run_id=1,
        node_id=_SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    server_app(grid=grid, context=context)
