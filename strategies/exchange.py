"""Messages to clients by partition id, and their replies in that order, with bytes counted.

A blob (`fedta_app.runs.blobs`) travels with the first message for which a client needs it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from torch import Tensor

from engine.client_memory import Setup, bytes_vector
from engine.shared_memory import SharingError
from engine.simulation import process_died
from engine.transport import (
    MEMORY,
    WIRE,
    TransportError,
    pack_many,
    payload_bytes,
    release,
    unpack_many,
)
from fedta_app.errors import RunError, shortened
from fedta_app.progress import counting
from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.directory import DIVERGED, PROCESS_DIED
from fedta_app.runs.metrics import CLIENT_PEAKS
from strategies.nodes import Nodes
from strategies.reply_checks import Check, NotFiniteError, ReplyError, TooFewClientsError

Entries = Mapping[str, int | float | str]
_MOST_MEMORY = 1e12  # in MB, that a client may say it took
_MOST_LINES = 40  # of a reason that is printed: Ray's is a traceback
REFUSAL = "refusal"  # name of the record that holds a reason in place of a result


@dataclass
class RoundCosts:
    """The bytes that a round moved, and how many clients answered.

    Attributes
    ----------
    errors : list of str
        Why clients were left out: they failed, did not answer, or their reply was rejected.
    rejected : dict from partition id to str
        What is wrong with the replies that were rejected; they are in `errors` too.
    missing : dict from partition id to str
        What became of the last message to each client that has not answered it well, as in "did
        not answer in time".
    not_finite : int
        How many of the rejected replies held numbers that are not finite, as when training
        diverges.
    memory_lost : list of int
        Clients whose memory is gone.
    peaks : dict from column of metrics.csv to float
        The most memory that one of the clients' processes took, where they say so.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    clients_ok: int = 0
    errors: list[str] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    not_finite: int = 0
    memory_lost: list[int] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)

    def reject(self, partition_id: int, error: Exception) -> None:
        """Note that a client's reply was not used, and why."""
        said = shortened(error)
        self.rejected[partition_id] = said
        self.not_finite += isinstance(error, NotFiniteError)
        self.missing[partition_id] = f"sent {said}"
        self.errors.append(f"client {partition_id} sent {said}")

    def fail(self, partition_id: int, reason: str) -> None:
        """Note that a client failed, and the reason it gave."""
        # Ray's reason is a traceback, whose last line is the error.
        last = shortened((reason.strip().splitlines() or [""])[-1])
        self.missing[partition_id] = f"failed ({last or 'without a reason'})"
        lines = [shortened(line) for line in reason.splitlines()[-_MOST_LINES:]]
        self.errors.append("\n".join(lines) or "a client failed without a reason")

    def add_peaks(self, record: Mapping[str, Any]) -> None:
        """Note what a client says of the memory that it took."""
        for name in CLIENT_PEAKS:
            size = record.get(name)
            if isinstance(size, int | float) and 0 <= size < _MOST_MEMORY:  # which NaN is not
                self.peaks[name] = max(size, self.peaks.get(name, 0.0))


class Answer(NamedTuple):
    """A good reply.

    Attributes
    ----------
    partition_id : int
    reply : Message
    vectors : dict of str to Tensor
        What it carries, read by the transport of the exchange.
    """

    partition_id: int
    reply: Message
    vectors: dict[str, Tensor]


def too_few(costs: RoundCosts, good: int, least: int, server_round: int) -> RunError:
    """Return the error of a round with fewer good replies than it needs, which says why."""
    if not good and costs.not_finite == len(costs.errors) > 0:
        return RunError(
            f"{DIVERGED} in round {server_round} ({costs.errors[0]}): lower lr, or clip"
        )
    which = "no client" if not good else f"{good} of at least {least} clients"
    reason = costs.errors[0] if costs.errors else "no more were asked"
    return TooFewClientsError(f"{which} finished round {server_round}: {reason}")


class Exchange:
    """Sends messages to clients, and collects their replies.

    Parameters
    ----------
    nodes : Nodes
        The federation.
    settings : mapping
        Configuration entries of every message.
    store : BlobStore
        Holds the blobs that a setup refers to.
    transport : str
        A transport of `engine.transport`.

    Attributes
    ----------
    known : dict from partition id to set of str
        The digests of the blobs that each client has received; part of a checkpoint.
    costs : RoundCosts
        Of the messages since `begin_round`.
    """

    def __init__(self, nodes: Nodes, settings: Entries, store: BlobStore, transport: str) -> None:
        self.nodes = nodes
        self.transport = transport
        self.known: dict[int, set[str]] = {}
        self.costs = RoundCosts()
        self._settings = {**settings, "transport": transport}
        self._store = store
        self._asked: dict[int, Metadata] = {}  # of the last message to each client
        self._named: dict[int, set[str]] = {}  # blobs that it referred to

    def begin_round(self) -> None:
        """Set the costs to zero."""
        self.costs = RoundCosts()

    def messages(
        self,
        partition_ids: Iterable[int],
        message_type: str,
        *,
        arrays: ArrayRecord | Callable[[int], ArrayRecord] | None = None,
        config: Entries | None = None,
        setup: Callable[[int], Setup] = lambda partition_id: Setup(),
    ) -> list[Message]:
        """Return a message for each client, with the blobs that it has not received yet.

        `arrays` is what all of them get, or says what each gets, by partition id.
        """
        found = []
        for partition_id in partition_ids:
            own = setup(partition_id)
            entries: dict[str, Any] = {**(config or {}), **self._settings, **own.to_config()}
            entries["partition-id"] = partition_id
            self._named[partition_id] = own.digests()
            content = RecordDict({"config": ConfigRecord(entries)})
            if arrays is not None:
                content["arrays"] = arrays(partition_id) if callable(arrays) else arrays
            if missing := own.digests() - self.known.get(partition_id, set()):
                content["blobs"] = self._blobs(missing)
            self.costs.bytes_down += sum(map(payload_bytes, content.array_records.values()))
            message = Message(content, self.nodes.by_partition[partition_id], message_type)
            self._asked[partition_id] = message.metadata
            found.append(message)
        return found

    def _blobs(self, digests: set[str]) -> ArrayRecord:
        blobs = {digest: bytes_vector(self._store.get(digest)) for digest in sorted(digests)}
        return pack_many(blobs, WIRE)

    def in_order(
        self, partition_ids: Iterable[int], replies: Iterable[Message], check: Check
    ) -> Iterator[Answer]:
        """Yield the good replies in the order of the clients, each as early as that order allows.

        The order is fixed because floating-point sums depend on it. Replies are matched to clients
        by the message they answer: a node may stand for several clients, and Flower itself answers
        for a node that is gone. The vectors of a reply are valid until the next one is requested.
        Clients that failed, or did not answer in time, or whose reply `check` rejects by raising
        ReplyError, are counted and left out.

        Raises
        ------
        RunError
            When a client failed because of the disk, the memory or the GPU that it shares with the
            server, or its process died in a simulation (`engine.simulation`).
        """
        waiting = [(self._asked.pop(pid), pid) for pid in partition_ids]
        early: dict[str, Message] = {}
        with counting("clients", len(waiting)) as done:
            for reply in replies:
                done.add()
                early[reply.metadata.reply_to_message_id] = reply
                # A message has an id only once the engine has sent it.
                while waiting and waiting[0][0].message_id in early:
                    asked, partition_id = waiting.pop(0)
                    yield from self._good(partition_id, early.pop(asked.message_id), check)
        for asked, partition_id in waiting:
            if asked.message_id in early:
                yield from self._good(partition_id, early.pop(asked.message_id), check)
            else:
                self.costs.missing[partition_id] = "did not answer in time"
                self.costs.errors.append(f"client {partition_id} did not answer in time")

    def _good(self, partition_id: int, reply: Message, check: Check) -> Iterator[Answer]:
        if reply.has_error():
            if process_died(reply.error.reason or ""):
                raise RunError(
                    f"{PROCESS_DIED} (client {partition_id}; out of memory?), and Flower would "
                    "give the next clients to the dead process: the run goes on from its last "
                    "checkpoint when it is started again"
                )
            # The client may have restarted on an empty disk: its blobs are sent again.
            self.known.pop(partition_id, None)
            for digest in self._named[partition_id]:
                self._store.get(digest)  # raises RunError where the client could not read it either
            self.costs.fail(partition_id, reply.error.reason or "")
            return
        if refusal := reply.content.config_records.get(REFUSAL):
            self._refused(partition_id, refusal)
            return
        arrays = reply.content.array_records.get("arrays", ArrayRecord())
        try:
            vectors = unpack_many(arrays, self.transport)
            check(partition_id, reply, vectors)
        except (TransportError, SharingError, ReplyError) as error:
            self.costs.reject(partition_id, error)
            with suppress(SharingError):
                release(arrays, self.transport)
            return
        self.costs.clients_ok += 1
        self.costs.missing.pop(partition_id, None)
        self.costs.add_peaks(reply.content.metric_records.get("peaks", {}))
        self.costs.bytes_up += sum(v.numel() * v.element_size() for v in vectors.values())
        yield Answer(partition_id, reply, vectors)
        release(arrays, self.transport)

    def _refused(self, partition_id: int, refusal: Mapping[str, Any]) -> None:
        """Count a client whose machine failed; raise RunError where it is this machine."""
        if self.one_machine:
            raise RunError(str(refusal.get("reason")))
        self.known.pop(partition_id, None)
        self.costs.fail(partition_id, str(refusal.get("reason")))
        if refusal.get("memory-lost"):
            self.costs.memory_lost.append(partition_id)

    @property
    def one_machine(self) -> bool:
        """Whether the clients are known to work on this machine, as in a simulation."""
        return self.transport == MEMORY or self.nodes.share_memory

    def remember(self, partition_id: int, setup: Setup) -> None:
        """Record that a client has received the blobs of a setup."""
        self.known.setdefault(partition_id, set()).update(setup.digests())

    def forget(self, digest: str) -> None:
        """Record nothing any more of a blob that no client will need."""
        for told in self.known.values():
            told.discard(digest)
