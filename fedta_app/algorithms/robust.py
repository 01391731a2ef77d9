r"""Robust rules: combinations of updates that a few malicious clients cannot steer.

FedMedian and FedTrimmedAvg: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", ICML 2018, arXiv 1803.01498. Krum and MultiKrum: Blanchard et al., "Machine
Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017. Bulyan: El Mhamdi,
Guerraoui and Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018,
arXiv 1802.07927. For n updates of a round, of which f may be malicious:

- FedMedian: per entry the median; of an even number, the mean of the middle two.
- FedTrimmedAvg: per entry the mean of what is left without the floor(s n) smallest and largest.
- Krum: the update with the least score, which is the sum of the squared distances to its n - f - 2
  nearest others.
- MultiKrum: the mean, by examples, of the m updates with the least scores.
- Bulyan: of the n - 2 f updates with the least scores, per entry the mean of the n - 4 f that are
  nearest to their median. (The paper scores those that are left anew after each choice.)

They are those of Flower's strategies of these names, on updates: the distances of Krum between
models, as Flower has them, drown in rounding. A distance that is not finite is the largest.

The server keeps all updates of a round until it combines them, n P numbers. A malicious client can
claim any number of examples; only MultiKrum believes it. *Masks of clients' own* are refused: an
update has no entry where its client did not train, and these rules compare all of them.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from fedta_app.aggregation.accumulators import MeanAccumulator
from fedta_app.algorithms.base import Accumulator, Algorithm, Reply, Total
from fedta_app.errors import ConfigError
from fedta_app.vectors.arithmetic import blocks, squared_norm


class _Kept:
    """Keeps the updates of a round, and combines them at its end."""

    def __init__(self, algorithm: "_Robust") -> None:
        self._algorithm = algorithm
        self._updates: list[Tensor] = []
        self._examples: list[int] = []

    def add(self, reply: Reply) -> None:
        if reply.trained is not None:
            raise ValueError(f"{self._algorithm.name} is not defined for masks of clients' own")
        self._updates.append(reply.update.clone())  # its memory is the next client's
        self._examples.append(reply.num_examples)

    def result(self) -> Total:
        return Total(self._algorithm.combined(self._updates, self._examples), len(self._updates))


class _Robust(Algorithm):
    """What the rules share: all updates of a round are there before they are combined."""

    own_masks: ClassVar[bool] = False

    @abstractmethod
    def combined(self, updates: Sequence[Tensor], examples: Sequence[int]) -> Tensor:
        """Return one update (P,) for those of the clients, each (P,)."""

    def accumulator(self) -> Accumulator:
        """Return what keeps the updates of a round."""
        return _Kept(self)


def _floor_of(share: float, number: int) -> int:
    """Return floor(share * number) of the share as it was typed: 0.29 * 100 is below 29 in floats.

    Examples
    --------
    >>> _floor_of(0.29, 100)
    29
    """
    return int(Fraction(str(share)) * number)


def _by_entry(updates: Sequence[Tensor], rule: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a rule's (P,), which it computes from (n, B) to (B,), a block after the other."""
    combined = torch.empty_like(updates[0])
    for target, *parts in blocks(combined, *updates):
        target.copy_(rule(torch.stack(parts)))
    return combined


def _median(values: Tensor) -> Tensor:
    """Return the medians (B,) of values (n, B)."""
    ordered, number = values.sort(dim=0).values, len(values)
    return (ordered[(number - 1) // 2] + ordered[number // 2]) / 2


def _nearest_first(updates: Sequence[Tensor], malicious: int) -> list[int]:
    """Return the positions of the updates in the order of their scores (see the module)."""
    number = len(updates)
    distances = [[0.0] * number for _ in updates]
    for i in range(number):
        for j in range(i):
            distance = squared_norm(updates[i] - updates[j])
            distance = distance if math.isfinite(distance) else math.inf
            distances[i][j] = distances[j][i] = distance
    nearest = max(1, number - malicious - 2)
    scores = [sum(sorted(row[:i] + row[i + 1 :])[:nearest]) for i, row in enumerate(distances)]
    return sorted(range(number), key=lambda i: (scores[i], i))


@dataclass(frozen=True)
class FedMedian(_Robust):
    """The median of each entry: see the module."""

    name: ClassVar[str] = "fedmedian"

    def combined(self, updates: Sequence[Tensor], examples: Sequence[int]) -> Tensor:
        """Return the medians."""
        return _by_entry(updates, _median)


@dataclass(frozen=True)
class FedTrimmedAvg(_Robust):
    """The mean of each entry without its extremes: see the module.

    Attributes
    ----------
    trimmed_share : float
        s, from 0 to below 1/2: the share of the updates that is cut off at either end.
    """

    name: ClassVar[str] = "fedtrimmedavg"
    trimmed_share: float = 0.2

    def combined(self, updates: Sequence[Tensor], examples: Sequence[int]) -> Tensor:
        """Return the trimmed means."""
        cut, number = _floor_of(self.trimmed_share, len(updates)), len(updates)
        return _by_entry(
            updates, lambda values: values.sort(dim=0).values[cut : number - cut].mean(0)
        )


@dataclass(frozen=True)
class _AgainstSome(_Robust):
    """What rules share that are told how many clients may be malicious.

    If too many replies of a round are lost for the rule to hold, the weights stay as they are.

    Attributes
    ----------
    malicious_clients : int
        f, of the clients of a round.
    num_clients : int
        All clients; 0 where that is not known yet.
    fraction_train : float
        The share of them in a round.
    superclient_clients : int
        How many clients train one after the other; a round combines such chains.

    Raises
    ------
    ConfigError
        When a round has too few clients for so many malicious ones.
    """

    copies: ClassVar[int] = 2  # n is at least this often f, and 3 more
    malicious_clients: int = 0
    num_clients: int = 0
    fraction_train: float = 1.0
    superclient_clients: int = 0

    @property
    def fewest(self) -> int:
        """How many replies the rule needs."""
        return self.copies * self.malicious_clients + 3 if self.malicious_clients else 1

    @property
    def _senders(self) -> str:
        return "superclients" if self.superclient_clients > 1 else "clients"

    @property
    def updates_per_round(self) -> int:
        """How many updates a round has; 0 where that is not known yet."""
        updates = -(-self.num_clients // max(1, self.superclient_clients))
        return max(1, round(self.fraction_train * updates)) if updates else 0

    def __post_init__(self) -> None:
        number = self.updates_per_round
        if number and number < self.fewest:
            raise ConfigError(
                f"malicious-clients = {self.malicious_clients} is not allowed with strategy = "
                f"'{self.name}' and {number} {self._senders} a round: it needs at least "
                f"{self.copies} * malicious-clients + 3 = {self.fewest} of them"
            )

    @abstractmethod
    def chosen(self, updates: Sequence[Tensor], examples: Sequence[int]) -> Tensor:
        """Return the combination, of as many updates as the rule needs or more."""

    def combined(self, updates: Sequence[Tensor], examples: Sequence[int]) -> Tensor:
        """Return the combination, or zero where there are too few updates."""
        if len(updates) < self.fewest:
            print(f"{self.name}: {len(updates)} replies, {self.fewest} are needed; no step is made")
            return torch.zeros_like(updates[0])
        return self.chosen(updates, examples)


@dataclass(frozen=True)
class MultiKrum(_AgainstSome):
    """The mean of the updates that are nearest to others: see the module.

    Attributes
    ----------
    selected_updates : int
        m; 0 stands for all that came but `malicious_clients`, which is also the most of any round:
        where replies are lost, fewer are averaged.
    """

    name: ClassVar[str] = "multikrum"
    selected_updates: int = 0

    def __post_init__(self) -> None:
        """Refuse more updates than are honest."""
        super().__post_init__()
        most = self.updates_per_round - self.malicious_clients
        if self.num_clients and self.selected_updates > most:
            raise ConfigError(
                f"selected-updates = {self.selected_updates} is not allowed with malicious-clients "
                f"= {self.malicious_clients} and {self.updates_per_round} {self._senders} a round: "
                f"selected-updates is at most {most} there"
            )

    def chosen(self, updates: Sequence[Tensor], examples: Sequence[int]) -> Tensor:
        """Return the mean of those with the least scores, by examples, in client order."""
        honest = len(updates) - self.malicious_clients
        number = min(self.selected_updates or honest, honest)
        mean = MeanAccumulator()
        for i in sorted(_nearest_first(updates, self.malicious_clients)[:number]):
            mean.add(updates[i], examples[i])
        return mean.result()


@dataclass(frozen=True)
class Krum(_AgainstSome):
    """The update that is nearest to others: see the module."""

    name: ClassVar[str] = "krum"

    def chosen(self, updates: Sequence[Tensor], examples: Sequence[int]) -> Tensor:
        """Return the update with the least score."""
        return updates[_nearest_first(updates, self.malicious_clients)[0]]


@dataclass(frozen=True)
class Bulyan(_AgainstSome):
    """The mean of each entry over those near its median, of updates near others: see the module."""

    name: ClassVar[str] = "bulyan"
    copies: ClassVar[int] = 4

    def chosen(self, updates: Sequence[Tensor], examples: Sequence[int]) -> Tensor:
        """Return the means of the values that are nearest to the medians."""
        selected = len(updates) - 2 * self.malicious_clients
        nearest = selected - 2 * self.malicious_clients

        def near_the_median(values: Tensor) -> Tensor:
            order = (values - _median(values)).abs().argsort(dim=0, stable=True)
            return values.gather(0, order[:nearest]).mean(0)

        positions = sorted(_nearest_first(updates, self.malicious_clients)[:selected])
        return _by_entry([updates[i] for i in positions], near_the_median)
