"""FedAvg, and the variants that differ in how updates are combined."""

from dataclasses import dataclass
from typing import ClassVar

from fedta_app.aggregation.accumulators import SignElectedMeanAccumulator
from fedta_app.algorithms.base import (
    Accumulator,
    Algorithm,
    MeanOfReplies,
    Move,
    Reply,
    Total,
    Vectors,
)


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """The mean of the updates over everybody, weighted by examples: see `Algorithm`."""

    name: ClassVar[str] = "fedavg"


@dataclass(frozen=True)
class MaskedFedAvg(Algorithm):
    """The mean, per entry, over the clients that trained it.

    With one mask for all clients this is FedAvg on the trained weights. With a mask per client the
    sum over those who trained weight j is divided by ``c_j^g W^(1-g)``, for c_j the examples of
    those who trained it, W those of everybody and g the coverage exponent. Algorithms that derive
    from this class combine updates in that way.

    Attributes
    ----------
    coverage_exponent : float
        g, from 0 to 1; read only where clients have masks of their own.
    """

    name: ClassVar[str] = "masked-fedavg"
    coverage_exponent: float = 1.0

    def accumulator(self) -> Accumulator:
        """Return the mean over those who trained an entry."""
        return MeanOfReplies(self.coverage_exponent)


class _ElectedReplies:
    """Replies combined by sign election."""

    def __init__(self) -> None:
        self._elected = SignElectedMeanAccumulator()
        self._clients = 0

    def add(self, reply: Reply) -> None:
        self._clients += 1
        self._elected.add(reply.update, reply.num_examples, reply.trained)

    def result(self) -> Total:
        return Total(self._elected.result(), self._clients)


@dataclass(frozen=True)
class Ties(Algorithm):
    """Sign election: per entry, the mean over the clients that agree with the elected sign.

    TIES-Merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708), without its trimming, which the
    masks do: see `fedta_app.aggregation.accumulators.SignElectedMeanAccumulator`.
    """

    name: ClassVar[str] = "ties"

    def accumulator(self) -> Accumulator:
        """Return the sign election."""
        return _ElectedReplies()


@dataclass(frozen=True)
class TaskArithmetic(Algorithm):
    """Scaled sum of the clients' task vectors: w <- w + a * sum_k (w_k - w).

    Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089. With
    a = 1 / (clients of the round) it is the unweighted mean (Tao et al., TMLR 2025).
    """

    name: ClassVar[str] = "task-arithmetic"
    server_scale: float = 1.0

    def accumulator(self) -> Accumulator:
        """Return the mean in which every client weighs the same."""
        return MeanOfReplies(by_examples=False)

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Move by a times the number of task vectors, of which `total` has the mean."""
        return Move(total.mean, self.server_scale * total.clients), state
