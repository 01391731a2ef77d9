"""What a federated algorithm is: a frozen value of a few pure functions over flat vectors.

A vector holds the entries that travel, packed, shape (P,): frozen weights are not in it, so no
algorithm can move one. A round is

    received = algorithm.broadcast(state, server_round)        # server: down, beside the weights
    rule = algorithm.local(start, received, memory)            # client: how it trains
    rule.begin(class_counts)                                   # client: what its data are
    update = <local SGD by the rule>                           # local minus global weights
    sent, memory = rule.finish(update, steps, rate)            # client: up, and what it keeps
    total = algorithm.accumulator() over the clients' replies  # server, one at a time, in order
    move, state = algorithm.step(state, total, server_round)   # server: weights <- weights + move

The base class is FedAvg. An algorithm overrides what differs, and at its neutral parameter returns
the base class's values, so that the bits are FedAvg's. Its fields are configuration keys by their
Python names (`server_lr` is `server-lr`): `fedta_app.algorithms.make_algorithm` fills them in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from fedta_app.aggregation.accumulators import MaskedMeanAccumulator, MeanAccumulator
from fedta_app.vectors.layout import Segment

Vectors = Mapping[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
NOTHING: Vectors = {}  # typed as read-only
PERSONAL = "personal"  # the name of a client's own weights in its memory

REGISTRY: dict[str, type["Algorithm"]] = {}


@dataclass(frozen=True)
class Correction:
    """A change of every step's gradient: g <- g + pull * (w - centre) + shift.

    It is affine in the weights, so the trainer applies it tensor by tensor: after unscaling,
    before clipping, weight decay and momentum.

    Attributes
    ----------
    pull : float
    centre, shift : Tensor of shape (P,) or None
        Over the entries that the client trains.
    """

    pull: float = 0.0
    centre: Tensor | None = None
    shift: Tensor | None = None


@dataclass(eq=False)
class LocalRule:
    """How a client trains in one round; what is not given or overridden costs nothing.

    Attributes
    ----------
    loss : callable or None
        Mean loss of logits (B, C) and labels (B,), in place of cross-entropy.
    correction : Correction or None
        Of the gradient, in every step.
    wants_start_loss : bool
        Whether the client's loss at the global weights is measured, and sent: one forward pass over
        its images.
    personal : PersonalModel or None
        Weights of the client's own, which it trains besides.
    ahead : float
        Every gradient is that at the weights which one plain step of this learning rate leads to,
        on a batch of its own; 0: that at the weights.
    """

    loss: Loss | None = None
    correction: Correction | None = None
    ahead: float = 0.0
    wants_start_loss: bool = False
    personal: "PersonalModel | None" = None

    def begin(self, class_counts: Tensor) -> None:
        """Take the client's number of training images of each class, (C,), before the first step.

        It stays on the client, unless the rule sends what it makes of it.
        """

    def finish(self, update: Tensor, steps: int, lr: float) -> tuple[Vectors, Vectors]:
        """Return the vectors that are sent beside the update, and the client's new memory."""
        return NOTHING, NOTHING


class PersonalModel(NamedTuple):
    """Weights that a client keeps in its memory, as `PERSONAL`, and trains beside the global ones.

    It takes as many steps as for the global weights, on batches of their own.

    Attributes
    ----------
    weights : Tensor of shape (P,)
        What their training starts from.
    rule : LocalRule
        Its loss and correction.
    """

    weights: Tensor
    rule: LocalRule


class Reply(NamedTuple):
    """What the server knows of one client's work in a round.

    Attributes
    ----------
    update : Tensor of shape (P,)
        Local minus global weights; zero where the client did not train.
    num_examples, steps : int
        The client's examples, and its local steps in this round.
    lr : float
        The local learning rate of the round.
    trained : bool Tensor of shape (P,), or None
        Which entries the client trained, where clients have masks of their own; None: all.
    sent : mapping of str to Tensor of shape (P,)
        What the local rule sent besides.
    start_loss : float
        Its mean cross-entropy at the global weights, where its rule wants it; else 0.
    """

    update: Tensor
    num_examples: int
    steps: int
    lr: float
    trained: Tensor | None = None
    sent: Vectors = NOTHING
    start_loss: float = 0.0


class Total(NamedTuple):
    """The combined replies of a round.

    Attributes
    ----------
    mean : Tensor of shape (P,)
    clients : int
        Replies in it.
    coverage : Tensor of shape (P,), or None
        The weight of the clients that trained each entry; None where all trained all of them.
    lr : float
        The local learning rate of the round.
    extra, figures : mapping of str to Tensor of shape (P,), and to float
        More that an algorithm's accumulator wants its step to know.
    start : Tensor of shape (P,), or None
        The global weights that the round started from, which whoever calls `step` adds; do not
        write to it.
    segments : tuple of Segment
        Likewise: which entries belong to one tensor of the model, in their order.
    """

    mean: Tensor
    clients: int
    coverage: Tensor | None = None
    lr: float = 0.0
    extra: Vectors = NOTHING
    figures: Mapping[str, float] = {}
    start: Tensor | None = None
    segments: tuple[Segment, ...] = ()


class Move(NamedTuple):
    """A change of the weights: w <- w + scale * direction. A zero entry moves nothing."""

    direction: Tensor
    scale: float = 1.0


class Accumulator(Protocol):
    """What the replies of a round are added to, one at a time, in the order of the clients."""

    def add(self, reply: Reply) -> None:
        """Take one client's reply."""

    def result(self) -> Total:
        """Return the combined replies."""


class MeanOfReplies:
    """Weighted mean of the updates.

    Parameters
    ----------
    coverage_exponent : float or None
        Where clients have masks of their own: g of
        `fedta_app.aggregation.accumulators.MaskedMeanAccumulator`, which divides by those who
        trained an entry; None divides by everybody.
    by_examples : bool
        Weigh a client by its number of examples; otherwise all weigh 1.
    """

    def __init__(self, coverage_exponent: float | None = None, *, by_examples: bool = True) -> None:
        self._everybody = MeanAccumulator()
        self._trained = MaskedMeanAccumulator(coverage_exponent or 0.0)
        self._masked = coverage_exponent is not None
        self.by_examples = by_examples
        self._clients = 0
        self._lr = 0.0

    def add(self, reply: Reply, weight: float | None = None) -> None:
        """Take one client's reply, by another weight where one is given."""
        if weight is None:
            weight = reply.num_examples if self.by_examples else 1
        self._clients += 1
        self._lr = reply.lr
        self._masked = self._masked and reply.trained is not None
        if self._masked:
            self._trained.add(reply.update, weight, reply.trained)
        else:
            self._everybody.add(reply.update, weight)

    def scale_weights(self, factor: float) -> None:
        """Multiply the weights of all replies so far; their mean stays."""
        self._everybody.scale_weights(factor)
        self._trained.scale_weights(factor)

    def result(self) -> Total:
        """Return the mean."""
        if not self._masked:
            return Total(self._everybody.result(), self._clients, lr=self._lr)
        mean, coverage = self._trained.result_and_coverage()
        return Total(mean, self._clients, coverage, self._lr)


@dataclass(frozen=True)
class Algorithm:
    """FedAvg, and the base of every other algorithm; a subclass with its own `name` is registered.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    AISTATS 2017, arXiv 1602.05629, Algorithm 1, on updates in place of models:
    ``w <- w + sum_k (n_k / n) (w_k - w)``.
    """

    name: ClassVar[str] = ""
    sends: ClassVar[tuple[str, ...]] = ()  # the vectors that its local rule sends besides
    own_masks: ClassVar[bool] = True  # whether it is defined where clients have masks of their own
    # Whether a reply may be the sum of updates of clients that trained one after the other. It may
    # not where an algorithm takes an update for the work of one client from the round's weights.
    sequential: ClassVar[bool] = True
    personal: ClassVar[bool] = False  # whether clients keep weights of their own, as `PERSONAL`
    # Whether the server's state is the mean of what clients keep, and both are made from the
    # updates. What changes an update on its way would part the two, for good.
    mirrored: ClassVar[bool] = False

    @property
    def adaptation(self) -> float:
        """The learning rate of the step that makes the global model a client's own; 0: none."""
        return 0.0

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__dict__.get("name"):  # a name of its own: a variant does not take its base's place
            REGISTRY[cls.name] = cls

    def init(self, num_entries: int, holders: Tensor | None = None) -> Vectors:
        """Return what the server keeps between rounds, at the start of training.

        Parameters
        ----------
        num_entries : int
            P, the entries that travel.
        holders : Tensor of shape (P,), optional
            How many of all clients train each entry, where clients have masks of their own.
        """
        return NOTHING

    def broadcast(self, state: Vectors, server_round: int) -> Vectors:
        """Return the vectors (P,) that travel to the clients beside the weights."""
        return NOTHING

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Return the rule by which a client trains in this round.

        Parameters
        ----------
        start : Tensor of shape (P,)
            The global weights that the client trains; do not write to it.
        received : mapping of str to Tensor of shape (P,)
            What `broadcast` returned, over the entries that the client trains.
        memory : mapping of str to Tensor
            What `finish` returned when the client trained last, to be written to; empty at first.
        """
        return LocalRule()

    def accumulator(self) -> Accumulator:
        """Return what the replies of a round are added to."""
        return MeanOfReplies()

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Return how the weights move, and what the server keeps for the next round.

        The vectors in `total` may be overwritten; those in `state`, on the same device, may not.
        """
        return Move(total.mean), state
