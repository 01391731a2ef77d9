"""A client whose machine fails: on the server's own it ends the run, elsewhere it is that client's.

The next client would fail as quickly, so that an actor on a full GPU would take most of a round.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from client_app import app
from experiments.exit_status import ExitStatus
from experiments.running.launch import attempt
from fedta_app.config import RunConfig
from fedta_app.device.exhausted import exhausted
from fedta_app.errors import RunError
from fedta_app.training import client as local
from tests.server_app.masked import run
from tests.strategies.test_reply_checks import answer, ask, strategy

FULL = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
DENSE = {"head": "random", "mask-rule": "none", "strategy": "fedavg"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "this GPU has no memory left .OutOfMemoryError: CUDA out of memory"),
        (MemoryError("1 GB"), "this machine has no memory left .MemoryError: 1 GB"),
        (OSError(28, "No space left on device", "x"), "x cannot be read or written: No space"),
    ],
)
def test_one_client_of_a_simulation_ends_the_run(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = local.train_steps

    def sometimes(*arguments: Any, key: tuple[int, ...], **values: Any) -> float:
        if key == (2, 1):
            raise error
        return train(*arguments, key=key, **values)

    monkeypatch.setattr(local, "train_steps", sometimes)
    with pytest.raises(RunError, match=said):
        run(tmp_path, **DENSE, **{"fraction-train": 1.0})
    monkeypatch.undo()  # and goes on from its checkpoint
    assert run(tmp_path, **DENSE, **{"fraction-train": 1.0})["final"]["clients_failed"] == 0


def test_a_node_of_a_deployment_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    fedavg = strategy()
    first, second, third = ask(fedavg)

    def fail(message: Any, context: Any) -> Any:
        raise FULL

    reply = app.report_machine(second, None, fail)  # type: ignore[arg-type]
    fedavg.aggregate_train(1, [answer(first), reply, answer(third)])
    costs = fedavg.exchange.costs
    assert costs.clients_ok == 2 and "no memory left" in costs.errors[0]
    assert not costs.memory_lost


def test_on_the_server_it_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig) -> None:
        raise FULL

    monkeypatch.setattr("experiments.running.launch.run_here", fail)
    config = RunConfig(engine="in-process", results_dir=str(tmp_path))
    assert attempt(config, client_cpus=1, client_gpus=None) == ExitStatus.FAILED
    said = capsys.readouterr().err
    assert said.startswith("failed: this GPU has no memory left") and "Traceback" not in said


def test_another_error_is_none_of_the_machine() -> None:
    assert not exhausted(RuntimeError("CUDA out of ideas"))
    gone = getattr(torch, "AcceleratorError", None)
    if gone is not None:
        assert exhausted(gone("device-side assert")).startswith("this GPU does not work any more")
