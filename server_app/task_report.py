"""Figures of the clients' task vectors in one round, saved when `task-figures` is set."""

from pathlib import Path

from torch import Tensor

from fedta_app.task_figures import (
    save_cosine_matrix,
    save_mask_overlap_matrix,
    save_sign_conflict_matrix,
)
from fedta_app.task_vectors import (
    TaskVector,
    cosine_matrix,
    mask_overlap_matrix,
    sign_conflict_matrix,
)


class TaskReport:
    """Keeps the updates of a round, over the weights that travel, until it is saved."""

    def __init__(self) -> None:
        self._vectors: dict[int, TaskVector] = {}
        self._masks: dict[int, dict[str, Tensor]] = {}

    def watch(self, partition_id: int, update: Tensor, trained: Tensor | None) -> None:
        """Keep a client's update; local minus global weights is its task vector."""
        self._vectors[partition_id] = TaskVector({"_": update.cpu().clone()})
        if trained is not None:
            self._masks[partition_id] = {"_": trained.cpu()}

    def save(self, folder: Path) -> None:
        """Save cosines and sign conflicts, and the overlap of masks that are clients' own."""
        labels = [str(partition_id) for partition_id in self._vectors]
        vectors = list(self._vectors.values())
        save_cosine_matrix(folder / "cosine.png", cosine_matrix(vectors), labels=labels)
        conflicts = sign_conflict_matrix(vectors)
        save_sign_conflict_matrix(folder / "sign_conflict.png", conflicts, labels=labels)
        if self._masks:
            overlap = mask_overlap_matrix(list(self._masks.values()))
            save_mask_overlap_matrix(folder / "mask_overlap.png", overlap, labels=labels)
