r"""DP-FedAvg: what the server learns of the clients' updates is a noisy sum of short vectors.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv
1710.06963, Algorithm 1 with flat clipping and a fixed denominator. With the update u_k of client k
over the weights that travel, the clients S of the round, their expected number m, the bound C and
the noise z,

.. math::

    \bar u = \frac{1}{m} \Bigl( \sum_{k \in S} u_k \min(1, C / \lVert u_k \rVert)
    + \mathcal{N}(0, (z C)^2 I) \Bigr)

Every client weighs 1 and m is the same whoever answers, so that one client more or less changes the
sum by at most C. What an algorithm makes of the mean is private too.
"""

from collections.abc import Collection
from typing import Any

import torch
from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
)

from fedta_app.algorithms import Accumulator, Algorithm, MeanOfReplies, Total
from fedta_app.errors import ConfigError
from fedta_app.seeding import torch_generator
from strategies.bounding import BoundedUpdates
from strategies.exchange import Exchange
from strategies.federated import FederatedStrategy
from strategies.nodes import choose_each

# Fractional orders gain little where epsilon is small enough to say anything, and some of their
# series do not converge.
_ORDERS = tuple(float(order) for order in [*range(2, 65), 80, 96, 128, 256, 512, 1024])


class PrivateStrategy(FederatedStrategy):
    """Rounds of an algorithm whose server needs nothing but the mean of the updates.

    Parameters
    ----------
    exchange, algorithm, **options
        As for `FederatedStrategy`, without `accumulator` and `min_clients_ok`: a round counts when
        one client of those that were sampled answers, and when none was sampled.
    clip : float
        C, the longest update.
    noise : float
        z, the standard deviation of the noise on the sum, as a multiple of C.
    poisson : bool
        Sample each client on its own with the probability `fraction_train`, rounded to a whole
        number of expected clients; otherwise exactly that number.
    """

    def __init__(
        self,
        exchange: Exchange,
        algorithm: Algorithm,
        *,
        clip: float,
        noise: float,
        poisson: bool,
        **options: Any,
    ) -> None:
        super().__init__(exchange, algorithm, **options)
        self.accumulator = lambda: BoundedUpdates(
            MeanOfReplies(by_examples=False), clip, by_median=False
        )
        self.clip = clip
        self.noise = noise
        self.poisson = poisson
        self.expected = exchange.nodes.count(self.fraction_train)

    def _sample(self, server_round: int, others_than: Collection[int]) -> list[int]:
        """Return the clients of a round; a repeated one draws anew from all, or from the others."""
        if not self.poisson:
            return super()._sample(server_round, others_than)
        number, attempt = len(self.exchange.nodes), ("again",) if others_than else ()
        key = (self.seed, self.message_type, server_round, *attempt)
        found = choose_each(number, self.expected / number, *key)
        self.min_clients_ok = min(1, len(found))
        return found

    def _total(self, combined: Accumulator, server_round: int) -> Total:
        """Return the noisy sum over the expected number of clients."""
        answered = len(self.answered)
        if answered:
            total = combined.result()
        else:
            lr = self.learning_rate(server_round)
            total = Total(torch.zeros_like(self._weights), 0, lr=lr)
        mean = total.mean
        if answered != self.expected:
            mean = mean * (answered / self.expected)
        if self.noise:
            generator = torch_generator(self.seed, "dp-noise", self.message_type, server_round)
            drawn = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            scale = self.noise * self.clip / self.expected
            mean = mean.add(drawn.to(mean.device), alpha=scale)
        return total._replace(mean=mean, clients=self.expected)

    def epsilon(self, rounds: int, delta: float) -> float:
        """Return the epsilon of so many rounds: see `epsilon`."""
        return epsilon(
            rounds,
            noise=self.noise,
            clients=self.expected,
            population=len(self.exchange.nodes),
            delta=delta,
            poisson=self.poisson,
        )


def epsilon(
    rounds: int, *, noise: float, clients: int, population: int, delta: float, poisson: bool
) -> float:
    """Return the epsilon at this delta of what so many rounds publish, for one client.

    Flower's accountant composes the Renyi divergences of the sampled Gaussian mechanism (Mironov,
    Talwar and Zhang, 2019, arXiv 1908.10530; without replacement: Wang, Balle and Kasiviswanathan,
    AISTATS 2019, arXiv 1808.00087), at whole orders.

    Parameters
    ----------
    noise : float
        The standard deviation of the noise on the sum over the longest update, above 0.
    clients, population : int
        How many clients a round expects, of how many.
    poisson : bool
        Each client is sampled on its own: two federations are neighbours if one has a client more.
        Otherwise the number is fixed: they are neighbours if one client differs, which changes the
        sum by up to twice the longest update.

    Raises
    ------
    ConfigError
        When the package behind Flower's accountant is not installed.
    """
    sampling = SamplingMethod.POISSON if poisson else SamplingMethod.WITHOUT_REPLACEMENT
    relation = NeighboringRelation.REPLACE_ONE
    if poisson:
        relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    config = PrivacyConfig(delta, population, relation, sampling)
    try:
        accountant = RdpAccountant(config, _ORDERS)
    except ImportError as error:
        raise ConfigError(
            f"dp-noise = {noise:g} is not allowed here: the package dp-accounting, which computes "
            'epsilon, cannot be imported; pip install "fedta[privacy]"'
        ) from error
    multiplier = noise if poisson else noise / 2
    accountant.compose(GaussianPrivacyEvent(multiplier, clients, population), rounds)
    return accountant.get_epsilon(delta)
