"""What a client keeps on disk, whichever of its answers comes last."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.client_memory import ClientMemory, MemoryLostError
from fedta_app.config import RunConfig


def client(folder: Path) -> ClientMemory:
    """Return what a process of its own works with; all share the folder."""
    config = RunConfig(results_dir=str(folder), name="test")
    return ClientMemory(SimpleNamespace(config=config))  # type: ignore[arg-type]


def kept(folder: Path, partition_id: int = 3) -> set[str]:
    files = (folder / f"test/seed0/clients/{partition_id}").iterdir()
    return {path.name for path in files if path.suffix != ".tmp"}  # the place of the next one


def test_a_late_answer_deletes_nothing_that_a_later_round_stored(tmp_path: Path) -> None:
    late, punctual = client(tmp_path), client(tmp_path)
    first = late.memorise(3, {"control": torch.tensor([1.0])})
    late.recall(3, first, kept=(first,))  # and trains for longer than round-timeout
    punctual.recall(3, first, kept=(first,))
    second = punctual.memorise(3, {"control": torch.tensor([2.0])})
    lost = late.memorise(3, {"control": torch.tensor([3.0])})
    assert kept(tmp_path) == {first, second, lost}
    assert punctual.recall(3, second, kept=(first, second))["control"].item() == 2.0
    assert kept(tmp_path) == {first, second}  # what no checkpoint names goes with the next task


def test_outdated_memories_go_with_the_next_task_of_their_client(tmp_path: Path) -> None:
    memory = client(tmp_path)
    first, second = (memory.memorise(3, {"c": torch.tensor([value])}) for value in (1.0, 2.0))
    other = memory.memorise(4, {"c": torch.tensor([1.0])})
    memory.recall(3, second)
    assert kept(tmp_path) == {first, second}  # it only read
    memory.recall(3, second, kept=())
    assert kept(tmp_path) == {second} and kept(tmp_path, 4) == {other}
    memory.recall(3, "", kept=())
    assert kept(tmp_path) == set()
    with pytest.raises(MemoryLostError, match="client 3 lost its memory"):
        memory.recall(3, second, kept=(second,))


def test_an_empty_memory_is_stored_nowhere(tmp_path: Path) -> None:
    memory = client(tmp_path)
    assert memory.memorise(3, {}) == "" and memory.recall(3, "", kept=()) == {}
    assert not (tmp_path / "test").exists()
