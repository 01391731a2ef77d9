"""The outputs of `task-figures`: task vectors of the last round's clients, and of the run."""

from pathlib import Path

from torch import Tensor

from fedta_app.analysis import cosine_matrix, mask_overlap_matrix, sign_conflict_matrix
from fedta_app.analysis.task_arithmetic import best_scale, forgotten, negation, save_points, scaling
from fedta_app.analysis.task_figures import (
    save_cosine_matrix,
    save_mask_overlap_matrix,
    save_sign_conflict_matrix,
)
from fedta_app.files import file_sha256
from server_app.state import ServerState

_TABLES = ("cosine", "sign_conflict", "mask_overlap", "scaling", "negation")  # as CSV


class TaskReport:
    """Collects the updates of a round and saves figures and tables of them."""

    def __init__(self) -> None:
        self._vectors: dict[int, Tensor] = {}
        self._masks: dict[int, Tensor] = {}

    def begin(self) -> None:
        """Forget the updates that were collected."""
        self._vectors, self._masks = {}, {}

    def watch(self, partition_id: int, update: Tensor, trained: Tensor | None) -> None:
        """Keep a client's update (P,), its task vector, and the mask of what it trained."""
        self._vectors[partition_id] = update.cpu().clone()
        if trained is not None:
            self._masks[partition_id] = trained.cpu()

    def save(self, folder: Path) -> None:
        """Save figures of cosines, sign conflicts, and the overlap of the clients' own masks."""
        labels = [str(partition_id) for partition_id in self._vectors]
        vectors = list(self._vectors.values())
        save_cosine_matrix(folder / "cosine.png", cosine_matrix(vectors), labels=labels)
        conflicts = sign_conflict_matrix(vectors)
        save_sign_conflict_matrix(folder / "sign_conflict.png", conflicts, labels=labels)
        if self._masks:
            overlap = mask_overlap_matrix(list(self._masks.values()))
            save_mask_overlap_matrix(folder / "mask_overlap.png", overlap, labels=labels)

    def save_arithmetic(self, folder: Path, state: ServerState, start: Tensor) -> dict[str, float]:
        """Scale the run's task vector, negate those of clients, save both; return key figures.

        Parameters
        ----------
        state : ServerState
            After the last round.
        start : Tensor of shape (N,)
            The weights before training.
        """
        state.memory.load_head(state.head)
        scaled = scaling(state.workspace, start, state.weights)
        vectors = {client: state.whole(self._vectors[client]) for client in self._vectors}
        negated = negation(state.workspace, start, state.weights, vectors)
        save_points(folder / "scaling.csv", scaled)
        save_points(folder / "negation.csv", negated)
        lost = forgotten(negated)
        return {"best-scale": best_scale(scaled)} | ({} if lost is None else {"forgotten": lost})


def table_digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every table of `TaskReport` in a folder, by the name of the file."""
    paths = [folder / f"{name}.csv" for name in _TABLES]
    return {path.name: file_sha256(path) for path in paths if path.exists()}
