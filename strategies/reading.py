"""A client's reply to a training round: what it has to be, and what the algorithm sees of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import Message
from torch import Tensor

from fedta_app.algorithms import Algorithm, Reply, Vectors
from strategies.reply_checks import ReplyError, Trained, check_training, check_vectors

# A client's reply as a vector over the weights that travel, and which of them the client trained
# (None: all).
Expand = Callable[[int, Tensor], tuple[Tensor, Tensor | None]]
WEIGHTS = "vector"  # their name in a message
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ReplyReader:
    """Checks replies, and reads them; the attributes are as in `FederatedStrategy`."""

    algorithm: Algorithm
    learning_rate: Callable[[int], float]
    expand: Expand
    size: Callable[[int, int], int]
    most_examples: Callable[[int], int]
    steps_of: Callable[[int], int]  # with so many examples; 0 for any number
    local_steps: Callable[[int], int] | None = None  # of a round; 0 where examples decide
    dtype: torch.dtype | None = None  # of an update; by default that of the weights

    def check(
        self,
        partition_id: int,
        message: Message,
        vectors: Vectors,
        weights: Tensor,
        server_round: int,
    ) -> Trained:
        """Return what a client says of its training, in a reply of which all is checked.

        Parameters
        ----------
        weights : Tensor of shape (P,)
            Those that travelled.

        Raises
        ------
        ReplyError
            Unless it is a reply of the algorithm, over the client's entries.
        """
        size = self.size(partition_id, weights.numel())
        names = (WEIGHTS, *self.algorithm.sends)
        check_vectors(vectors, dict.fromkeys(names, size), self.dtype or weights.dtype)
        memory = message.content.config_records.get("memory")
        if memory is not None and not _SHA256.fullmatch(str(memory.get("digest"))):
            raise ReplyError("a name of its memory that is no sha256")
        in_round = self.local_steps(server_round) if self.local_steps else 0
        return check_training(
            message,
            most_examples=self.most_examples(partition_id),
            steps_of=lambda examples: in_round or self.steps_of(examples),
        )

    def read(
        self, partition_id: int, said: Trained, vectors: dict[str, Tensor], server_round: int
    ) -> Reply:
        """Return a reply of which `check` returned this, over the weights that travel."""
        update, entries = self.expand(partition_id, vectors.pop(WEIGHTS))
        sent = {name: self.expand(partition_id, vector)[0] for name, vector in vectors.items()}
        return Reply(
            update,
            num_examples=said.num_examples,
            steps=said.steps,
            lr=self.learning_rate(server_round),
            trained=entries,
            sent=sent,
            start_loss=said.start_loss,
        )
