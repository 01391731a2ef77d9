"""The server's half of secure aggregation: sums of integers behind masks, and nothing else.

See `fedta_app.secure.protocol`, also for what of it is simulated. Clients multiply their updates by
their weight in the mean before they mask them; their numbers of images and steps and their losses
come in the clear.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from engine.replies import replies_as_they_come
from engine.transport import release
from fedta_app.algorithms import Accumulator, Algorithm, MeanOfReplies, Reply, Total, Vectors
from fedta_app.errors import RunError
from fedta_app.secure import FixedPoint, SecureSum, UnmaskError, fraction_bits
from fedta_app.secure.shamir import SHARE_BYTES
from strategies.exchange import Exchange
from strategies.federated import FederatedStrategy
from strategies.reply_checks import check_vectors

_FEWEST_BITS = 8  # behind the point, of an update times its weight

# Ask clients for their shares: given clients and settings, yields what each of them told.
AskShares = Callable[[Sequence[int], Mapping[str, Any]], Iterable[tuple[int, Tensor]]]


class MaskedTotal:
    """Adds up integers behind masks, and opens their sum.

    Parameters
    ----------
    whole : SecureSum
    point : FixedPoint
        What the integers stand for.

    Attributes
    ----------
    answered : list of int
        The clients whose integers are in the sum.
    """

    def __init__(self, whole: SecureSum, point: FixedPoint) -> None:
        self.whole, self.point = whole, point
        self.answered: list[int] = []
        self._total: Tensor | None = None

    def add(self, client: int, masked: Tensor) -> None:
        """Take the masked integers (D,) of a client."""
        self._total = masked.clone() if self._total is None else self._total.add_(masked)
        self.answered.append(client)

    def opened(self, ask: AskShares, errors: Sequence[str] = ()) -> Tensor:
        """Return the sum, float64 of shape (D,), with the help of the clients that answered.

        Parameters
        ----------
        errors : sequence of str
            Why others did not, for the sentence of the error.

        Raises
        ------
        RunError
            When too few of them are in it, or told their shares.
        """
        whole = self.whole
        try:
            if self._total is None or len(self.answered) < whole.threshold:
                why = f" ({errors[0]})" if errors else ""
                raise UnmaskError(
                    f"{len(self.answered)} of {len(whole.clients)} clients are in the sum "
                    f"{whole.name!r}, and at least {whole.threshold} have to be{why}"
                )
            answered = " ".join(map(str, self.answered))
            settings = {**whole.to_config(), "secure-answered": answered}
            told = {
                client: shares.reshape(-1, SHARE_BYTES).clone()
                for client, shares in ask(self.answered, settings)
            }
            return self.point.decode(whole.unmasked(self._total, self.answered, told))
        except UnmaskError as error:
            raise RunError(f"secure aggregation cannot go on: {error}") from error


def shares_of(
    exchange: Exchange, whole: SecureSum, clients: Sequence[int], replies: Iterable[Message]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the good replies to a request for shares, with the clients that they are of."""
    size = {"vector": len(whole.clients) * SHARE_BYTES}

    def check(client: int, message: Message, vectors: Vectors) -> None:
        check_vectors(vectors, size, torch.uint8)

    for answer in exchange.in_order(clients, replies, check):
        exchange.costs.clients_ok -= 1  # it was counted for its vector
        yield answer.partition_id, answer.vectors["vector"]
    for client in clients:  # whose vectors are in the sum, whether they told their shares or not
        exchange.costs.missing.pop(client, None)


class SecureStrategy(FederatedStrategy):
    """Rounds of an algorithm whose server needs nothing but the mean of the updates.

    Parameters
    ----------
    exchange, algorithm, **options
        As for `FederatedStrategy`, without `accumulator`.
    largest : float
        The largest entry of an update; clients cut what is larger.
    most_held : int
        How many examples the largest client has.
    share : float
        Of a round's clients that must answer, above a half.
    timeout : float
        Seconds to wait for shares.
    """

    def __init__(
        self,
        exchange: Exchange,
        algorithm: Algorithm,
        *,
        largest: float,
        most_held: int,
        share: float,
        timeout: float,
        **options: Any,
    ) -> None:
        super().__init__(exchange, algorithm, **options)
        combined = algorithm.accumulator()
        if not isinstance(combined, MeanOfReplies):
            raise ValueError(f"{algorithm.name} needs more than the mean of the updates")
        self._weigh = combined.by_examples
        self._most = largest * (most_held if self._weigh else 1)
        if fraction_bits(32, self._most, 2) < _FEWEST_BITS:
            raise RunError(
                f"secure-aggregation cannot add up updates of up to {self._most:.3g} in 32 bits "
                f"(secure-range times the {most_held} images of the largest client): lower "
                "secure-range"
            )
        self._share, self._timeout = share, timeout
        self._least = self.min_clients_ok
        self._reader = replace(self._reader, dtype=torch.int32)
        self._grid: Grid
        self._masked: MaskedTotal

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each sampled client, which says whose masks it has to add."""
        self._grid = grid
        return super().configure_train(server_round, arrays, config, grid)

    def _sample(self, server_round: int, others_than: Collection[int]) -> list[int]:
        """Return the clients of a round, sorted, and begin their sum."""
        clients = super()._sample(server_round, others_than)
        again = " again" if others_than else ""
        name = f"{self.message_type} {server_round}{again}"
        whole = SecureSum.over(self.seed, name, clients, self._share)
        self.min_clients_ok = max(self._least, whole.threshold)
        self._masked = MaskedTotal(
            whole, FixedPoint(32, fraction_bits(32, self._most, len(clients)))
        )
        return clients

    def _settings(self, server_round: int) -> dict[str, Any]:
        """Return what the clients are told besides the vectors: of the round's sum too."""
        masked = self._masked
        told = {**masked.whole.to_config(), "secure-fraction": masked.point.fraction}
        return {**super()._settings(server_round), **told}

    def _good(
        self, clients: list[int], replies: Iterable[Message], server_round: int
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the good replies, whose updates are integers behind masks."""
        for client, reply in super()._good(clients, replies, server_round):
            self._masked.add(client, reply.update)
            yield client, reply

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Return the new weights and the mean training loss of the clients that answered."""
        for _ in self._good(self._sampled, replies, server_round):
            pass  # there are only sums: no single update is there to be combined
        release(self._sent, self.exchange.transport)
        return self._finish(self.accumulator(), server_round)

    def _total(self, combined: Accumulator, server_round: int) -> Total:
        """Return the mean, opened only now that it is known that enough clients answered."""
        weight = self._examples if self._weigh else len(self.answered)
        mean = (self._masked.opened(self._ask) / weight).float()
        return Total(mean, len(self.answered), lr=self.learning_rate(server_round))

    def _ask(
        self, clients: Sequence[int], settings: Mapping[str, Any]
    ) -> Iterator[tuple[int, Tensor]]:
        messages = self.exchange.messages(
            clients, "train.unmask", config=settings, setup=self.setup
        )
        replies = replies_as_they_come(self._grid, messages, self._timeout)
        yield from shares_of(self.exchange, self._masked.whole, clients, replies)
