"""What sees the updates of a round as they are added up."""

from typing import Protocol

from torch import Tensor


class Watcher(Protocol):
    """Something that measures the updates of a round."""

    def begin(self) -> None:
        """Forget what was seen: a round begins, perhaps for the second time."""

    def watch(self, partition_id: int, update: Tensor, trained: Tensor | None) -> None:
        """Take an update (P,), and the mask of the entries that the client trained."""
