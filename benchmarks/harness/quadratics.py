"""An algorithm on clients whose loss is a quadratic, by naive loops, for tests and for audits.

There is no engine and no model, and there are no masks but those that a client is given.
Client k's loss is f_k(w) = 1/2 sum_j a_kj (w_j - o_kj)^2. The minimum of the mean of the clients'
losses is known: it is sum_k a_k o_k / sum_k a_k, entry by entry.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedta_app.algorithms import PERSONAL, Algorithm, LocalRule, Reply, Vectors
from fedta_app.vectors.layout import Segment


@dataclass
class Client:
    """A quadratic, its examples, its local steps (0: the server's), and what it keeps."""

    curvature: Tensor
    optimum: Tensor
    num_examples: int = 1
    mask: Tensor | None = None
    steps: int = 0
    memory: Vectors = field(default_factory=dict)

    def gradient(self, weights: Tensor) -> Tensor:
        """Return the gradient of the loss at weights (N,)."""
        return self.curvature * (weights - self.optimum)

    def loss(self, weights: Tensor) -> float:
        """Return the loss at weights (N,)."""
        return float((self.curvature * (weights - self.optimum).square()).sum() / 2)


@dataclass
class Server:
    """Weights, the algorithm's state, and one round after the other."""

    algorithm: Algorithm
    clients: Sequence[Client]
    weights: Tensor
    steps: int = 4
    lr: float = 0.05
    momentum: float = 0.0
    state: Vectors | None = None
    segments: tuple[Segment, ...] = ()
    round: int = 0

    def run_round(self, chosen: Iterable[int], failing: Iterable[int] = ()) -> None:
        """Train the chosen clients; those that fail do their work, and their reply is lost."""
        self.round += 1
        algorithm = self.algorithm
        if self.state is None:
            found = algorithm.init(self.weights.numel(), self._holders())
            self.state = {name: vector.to(self.weights) for name, vector in found.items()}
        received = algorithm.broadcast(self.state, self.round)
        total = algorithm.accumulator()
        for number in chosen:
            reply, memory = self._train(self.clients[number], received)
            if number not in failing:
                self.clients[number].memory = memory
                total.add(reply)
        segments = self.segments or (Segment(self.weights.numel(), dims=2),)
        combined = total.result()._replace(start=self.weights, segments=segments)
        move, self.state = algorithm.step(self.state, combined, self.round)
        moved = self.weights + move.scale * move.direction
        self.weights = torch.where(move.direction == 0, self.weights, moved)

    def _holders(self) -> Tensor | None:
        masks = [client.mask for client in self.clients if client.mask is not None]
        return torch.stack(masks).sum(0).float() if masks else None

    def corrected(self, rule: LocalRule, gradient: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient that a client steps along: its own, corrected by the rule."""
        if (correction := rule.correction) is not None:
            if correction.pull:
                assert correction.centre is not None
                gradient = gradient + correction.pull * (weights - correction.centre)
            if correction.shift is not None:
                gradient = gradient + correction.shift
        return gradient

    def _train(self, client: Client, received: Vectors) -> tuple[Reply, Vectors]:
        mask = torch.ones_like(self.weights, dtype=torch.bool)
        mask = mask if client.mask is None else client.mask
        start = self.weights[mask]
        broadcast = {name: vector[mask] for name, vector in received.items()}
        rule = self.algorithm.local(start, broadcast, client.memory)
        steps = client.steps or self.steps
        update = self._trained(client, rule, start, mask, steps) - start
        sent, memory = rule.finish(update, steps, self.lr)
        if rule.personal is not None:
            begin, personal = rule.personal
            memory = {**memory, PERSONAL: self._trained(client, personal, begin, mask, steps)}
        whole = torch.zeros_like(self.weights)
        whole[mask] = update
        reply = Reply(whole, client.num_examples, steps, self.lr, client.mask, dict(sent))
        if rule.wants_start_loss:
            reply = reply._replace(start_loss=client.loss(self.weights))
        return reply, memory

    def _trained(
        self, client: Client, rule: LocalRule, start: Tensor, mask: Tensor, steps: int
    ) -> Tensor:
        """Return the entries of the mask after local steps from `start`."""
        weights, buffer = self.weights.clone(), torch.zeros_like(start)
        weights[mask] = start
        for step in range(steps):
            at = weights
            if rule.ahead:
                at = weights.clone()
                at[mask] -= rule.ahead * client.gradient(weights)[mask]
            gradient = self.corrected(rule, client.gradient(at)[mask], weights[mask])
            buffer = gradient if step == 0 else self.momentum * buffer + gradient
            weights[mask] -= self.lr * buffer
        return weights[mask]


def clients(
    number: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Client]:
    """Return clients that disagree on curvature and optimum, with unequal numbers of examples."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.rand(size, generator=generator, dtype=dtype)

    return [Client(0.2 + 2 * draw(), 4 * draw() - 2, 3 + 5 * k) for k in range(number)]


def optimum(those: Sequence[Client], *, by_examples: bool = False) -> Tensor:
    """Return the minimum of the mean of the clients' losses, weighed by their examples or not."""
    weights = [client.num_examples if by_examples else 1 for client in those]
    curvatures = torch.stack([w * c.curvature for w, c in zip(weights, those, strict=True)])
    optima = torch.stack([client.optimum for client in those])
    return (curvatures * optima).sum(0) / curvatures.sum(0)


def schedule(rounds: int, number: int, share: int) -> list[list[int]]:
    """Return which clients train in each round, some of them, in ascending order."""
    generator = torch.Generator().manual_seed(7)
    return [
        sorted(torch.randperm(number, generator=generator)[:share].tolist()) for _ in range(rounds)
    ]
