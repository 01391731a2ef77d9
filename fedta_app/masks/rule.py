"""What a mask rule consists of. The rules themselves are the files of `fedta_app.masks.rules`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedta_app.vectors import Layout

Batches = Iterable[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Entries:
    """What a rule may rank the N entries by; all vectors lie on the CPU.

    Attributes
    ----------
    layout : Layout
        The parameters that the entries belong to.
    values : Tensor of shape (N,)
        The weights, never softened.
    scores : Tensor of shape (N,), or None
        What `ScoreSums.scores` returned; None for rules that need no scores.
    seed : int
        Of rules that draw random numbers.
    """

    layout: Layout
    values: Tensor
    scores: Tensor | None
    seed: int


class ScoreSums:
    """The messages of clients in a calibration round, added up as they arrive.

    A rule whose clients send a statistic besides their sensitivities overrides `add_statistic` and
    `scores`. The sums are float64, so that the sum over clients is that over their images up to
    one rounding.

    Attributes
    ----------
    sensitivities : float64 Tensor of shape (N,)
        Summed over the clients.
    num_clients : int
        How many clients were added.
    """

    def __init__(self, size: int) -> None:
        self.sensitivities = torch.zeros(size, dtype=torch.float64)
        self.num_clients = 0

    def add(self, message: Tensor) -> None:
        """Add what a client sent: its sensitivities (N,), then its statistic, if the rule has one.

        Parameters
        ----------
        message : Tensor of shape (N,) or (2 N,)
        """
        size = self.sensitivities.numel()
        message = message.cpu()
        self.sensitivities += message[:size]
        self.add_statistic(message[size:])
        self.num_clients += 1

    def add_statistic(self, statistic: Tensor) -> None:
        """Add a client's statistic (N,); empty where the rule has none."""

    def scores(self) -> Tensor:
        """Return what the rule ranks by, float64 of shape (N,)."""
        return self.sensitivities


def _by_scores(entries: Entries) -> Tensor:
    assert entries.scores is not None, "a rule that needs scores was given none"
    return entries.scores


@dataclass(frozen=True)
class MaskRule:
    """How the entries are ranked; those that come first are trained.

    Attributes
    ----------
    name : str
        The value of the key `mask-rule`.
    rank : callable
        Returns one number per entry, of shape (N,); by default the scores.
    largest_first : bool
        Whether the entries with the largest numbers are trained, not those with the smallest.
    needs_scores : bool
        Whether sensitivities must be measured on data.
    takes_threshold : bool
        Whether the numbers have a meaning of their own, so that a threshold can replace the
        density.
    statistic : callable, optional
        Called on a client as `statistic(model, names, batches)`, with the model in evaluation
        mode. It returns a vector (N,) over the named parameters, which is sent after the
        sensitivities.
    sums : type of ScoreSums
        How the server combines the clients' messages.
    against_others : callable, optional
        Called on a client as `against_others(own, total)`, with its sensitivities (N,) and their
        sum over all clients, which the server sends it; returns what the client ranks by, (N,).
        Each client then has a mask of its own, found in one round.
    """

    name: str
    rank: Callable[[Entries], Tensor] = _by_scores
    largest_first: bool = False
    needs_scores: bool = True
    takes_threshold: bool = True
    statistic: Callable[[nn.Module, Sequence[str], Batches], Tensor] | None = None
    sums: type[ScoreSums] = ScoreSums
    against_others: Callable[[Tensor, Tensor], Tensor] | None = None

    def message_size(self, size: int) -> int:
        """Return how many numbers a client sends in a calibration round for N = `size` entries."""
        return size if self.statistic is None else 2 * size


def by_magnitude(entries: Entries) -> Tensor:
    """Return the absolute values of the weights, of shape (N,)."""
    return entries.values.abs()
