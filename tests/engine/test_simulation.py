"""What Flower says of a client whose process died, beside what it says of one that failed."""

import sys

import pytest

from engine.simulation import process_died

DIED = "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing"


@pytest.mark.parametrize(
    ("reason", "died"),
    [
        (DIED, True),
        ("<class 'ray.exceptions.RayActorError'>:<'The actor is dead.'>", True),
        ("<class 'ray.exceptions.OutOfMemoryError'>:<'Task was killed due to the node'>", True),
        ("<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ActorDiedError'>", False),
        ("RuntimeError: <class 'ray.exceptions.ActorDiedError'>", False),
        ("", False),
    ],
)
def test_it_is_told_from_an_error_of_a_client(
    reason: str, died: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys)
    assert process_died(reason) == died


def test_a_node_of_a_deployment_cannot_end_a_run_by_saying_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert not process_died(DIED)
