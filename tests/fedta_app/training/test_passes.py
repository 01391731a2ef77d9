import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import cross_entropy

from fedta_app.config import RunConfig
from fedta_app.training.client import train_client
from fedta_app.training.passes import MODES, Passes, Recording, resolve_mode
from fedta_app.training.workspace import Workspace, build_workspace

CPU = torch.device("cpu")
BASE = {"weights": "random", "num-clients": 20, "lr": 0.05, "threads": 1, "device": "cpu"}


def workspace(**values: object) -> Workspace:
    return build_workspace(RunConfig.from_mapping({**BASE, **values}))


def make_passes(mode: str, sizes: Sequence[int] = (4,)) -> tuple[nn.Module, Passes]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    passes = Passes(model, CPU, precision="fp32", mode="off", batch_sizes=sizes)
    passes.mode = mode  # the constructor would refuse graphs on a CPU
    return model, passes


def batch(size: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, 3, generator=generator),
        torch.randint(2, (size,), generator=generator),
    )


def no_scaler() -> GradScaler:
    return GradScaler("cpu", enabled=False)


def expected(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = cross_entropy(model(inputs), labels)
    return loss.detach(), list(torch.autograd.grad(loss, parameters))


class FakeRecording:
    """Counts, and computes op by op what a graph would replay."""

    made: list["FakeRecording"]
    error: RuntimeError | None = None

    def __init__(
        self, loss: Any, trained: Any, inputs: Tensor, labels: Tensor, pool: Any, stream: Any
    ) -> None:
        if FakeRecording.error:
            trained[0].grad = torch.ones_like(trained[0])  # an attempt may fail half-way
            raise FakeRecording.error
        self.loss, self.trained, self.shape, self.replays = loss, trained, inputs.shape, 0
        FakeRecording.made.append(self)

    def replay(self, inputs: Tensor, labels: Tensor, scaler: GradScaler) -> Tensor:
        assert inputs.shape == self.shape
        self.replays += 1
        loss = self.loss(inputs, labels)
        for parameter, gradient in zip(
            self.trained, torch.autograd.grad(loss, self.trained), strict=True
        ):
            parameter.grad = gradient
        return loss.detach()


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[FakeRecording]:
    FakeRecording.made, FakeRecording.error = [], None
    monkeypatch.setattr("fedta_app.training.passes.Recording", FakeRecording)
    monkeypatch.setattr("torch.cuda.graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr("torch.cuda.Stream", lambda device: object())
    return FakeRecording.made


def check(model: nn.Module, passes: Passes, size: int, seed: int) -> None:
    inputs, labels = batch(size, seed)
    loss, gradients = expected(model, inputs, labels)
    for parameter in model.parameters():
        parameter.grad = None
    assert torch.equal(passes(inputs, labels, no_scaler()), loss)
    found = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


def test_a_graph_is_recorded_at_second_sight_of_a_whole_batch(
    recordings: list[FakeRecording],
) -> None:
    model, passes = make_passes("cuda-graph")
    for seed in range(5):
        check(model, passes, 4, seed)
        check(model, passes, 3, seed)  # the last of a pass over the data: op by op
    assert [(recording.shape, recording.replays) for recording in recordings] == [((4, 3), 4)]


def test_other_trained_tensors_get_a_graph_of_their_own_and_there_are_few(
    recordings: list[FakeRecording],
) -> None:
    model, passes = make_passes("cuda-graph", sizes=(2, 4))
    parameters = list(model.parameters())
    for frozen in (None, *range(4)):
        if frozen is not None:
            parameters[frozen].requires_grad_(False)
        for seed in range(3):
            check(model, passes, 4, seed)
            check(model, passes, 2, seed)
        if frozen is not None:
            parameters[frozen].requires_grad_(True)
    assert len(recordings) == 4
    assert all(recording.replays == 2 for recording in recordings)


def test_a_batch_that_never_comes_again_takes_no_graphs_place(
    recordings: list[FakeRecording],
) -> None:
    model, passes = make_passes("cuda-graph", sizes=range(1, 8))
    for size in (1, 2, 3, 5, 6, 4, 4):  # five clients with few images come first
        check(model, passes, size, seed=size)
    assert [recording.shape for recording in recordings] == [(4, 3)]


def test_where_one_cannot_be_recorded_the_memory_of_the_others_is_free(
    recordings: list[FakeRecording], capsys: pytest.CaptureFixture[str]
) -> None:
    model, passes = make_passes("cuda-graph", sizes=(2, 4))
    check(model, passes, 4, seed=1)
    check(model, passes, 4, seed=2)
    assert len(recordings) == 1
    FakeRecording.error = torch.OutOfMemoryError("CUDA out of memory")
    for seed in range(3):
        check(model, passes, 2, seed)
        check(model, passes, 4, seed)
    assert capsys.readouterr().out.count("is off in this process") == 1
    assert not passes._recordings and passes._pool is None


class FakeGraph:
    """Replays by computing again, from and into the memory that was recorded."""

    recording: Recording
    model: nn.Module

    def replay(self) -> None:
        recording = self.recording
        loss = cross_entropy(self.model(recording._inputs), recording._labels)
        gradients = torch.autograd.grad(loss * recording._scale, recording._trained)
        for static, gradient in zip(recording._gradients, gradients, strict=True):
            static.copy_(gradient)
        recording._loss.copy_(loss.detach())


def test_a_recording_reads_and_writes_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.CUDAGraph", FakeGraph)
    monkeypatch.setattr("torch.cuda.graph", lambda graph, **options: contextlib.nullcontext())
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: None)
    monkeypatch.setattr("torch.cuda.device", lambda device: contextlib.nullcontext())
    model, _ = make_passes("off")
    trained = list(model.parameters())[1:]
    trained[0].grad = torch.ones_like(trained[0])  # of an earlier step: not to be added to
    first = batch(4, seed=1)
    recording = Recording(
        lambda x, y: cross_entropy(model(x), y), trained, *first, pool=(0, 1), stream=None
    )
    FakeGraph.recording, FakeGraph.model = recording, model
    scaler = GradScaler("cpu", init_scale=1024.0)
    losses = []
    for seed in (2, 3):
        inputs, labels = batch(4, seed)
        losses.append(recording.replay(inputs, labels, scaler))
        loss, gradients = expected(model, inputs, labels)
        assert torch.equal(losses[-1], loss)
        for parameter, gradient in zip(trained, gradients[1:], strict=True):
            assert torch.equal(parameter.grad, gradient * 1024)
            assert parameter.grad.data_ptr() in {g.data_ptr() for g in recording._gradients}
            parameter.grad = None  # as the optimizer leaves it
    assert losses[0] != losses[1]  # the first is no view of what the second overwrote
    assert torch.equal(first[0], batch(4, seed=1)[0])


def test_what_cannot_be_recorded_runs_op_by_op_after_one_line(
    recordings: list[FakeRecording], capsys: pytest.CaptureFixture[str]
) -> None:
    model, passes = make_passes("cuda-graph")
    FakeRecording.error = RuntimeError("operation not permitted\nand more")
    for seed in range(4):
        check(model, passes, 4, seed)
    line = "compile = 'cuda-graph' is off in this process: RuntimeError: operation not permitted"
    assert capsys.readouterr().out == f"{line}\n"
    assert passes.mode == "off"


def test_what_cannot_be_compiled_runs_op_by_op_after_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def compile_nothing(model: nn.Module, *, dynamic: bool) -> Any:
        calls.append(dynamic)
        raise RuntimeError("no C compiler")

    monkeypatch.setattr("torch.compile", compile_nothing)
    model, passes = make_passes("inductor")
    for seed in range(3):
        check(model, passes, 4, seed)
    assert calls == [False]
    assert capsys.readouterr().out.count("is off in this process: RuntimeError: no C comp") == 1


def test_one_compilation_serves_every_client(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_once(model: nn.Module, *, dynamic: bool) -> Any:
        compiled.append(model)
        return model

    monkeypatch.setattr("torch.compile", compile_once)
    updates = []
    for mode in ("off", "inductor"):
        space = workspace(compile=mode)
        start = space.weights.vector.clone()
        for partition_id in range(3):
            result = train_client(space, start, partition_id=partition_id, server_round=1, lr=0.05)
            updates.append(result.update.clone())
    assert len(compiled) == 1
    assert all(torch.equal(updates[i], updates[i + 3]) for i in range(3))


def test_whole_batches_are_those_of_every_client() -> None:
    space = workspace(**{"batch-size": 8, "num-clients": 50})
    sizes = {min(8, len(positions)) for positions in space.partitions}
    assert space.passes._sizes == sizes
    assert workspace(**{"engine": "centralized", "batch-size": 32}).passes._sizes == {32}


def test_a_cpu_has_no_graphs_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    space = workspace(compile="cuda-graph")
    start = space.weights.vector.clone()
    for partition_id in (0, 1):
        train_client(space, start, partition_id=partition_id, server_round=1, lr=0.05)
    assert (
        capsys.readouterr().out
        == "compile = 'cuda-graph' is off in this process: CUDA graphs do not run on cpu\n"
    )


def test_auto_is_a_graph_where_there_are_graphs(
    device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    space = workspace(device=str(device))
    assert space.config.compile == "auto"
    assert space.passes.mode == ("off" if device.type == "cpu" else "cuda-graph")
    assert capsys.readouterr().out == ""
    for name in MODES:
        assert resolve_mode(name, device) == name


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_steps_do_what_eager_ones_do(precision: str) -> None:
    updates = []
    for mode in ("off", "inductor"):
        space = workspace(compile=mode, precision=precision, kernels="torch")
        start = space.weights.vector.clone()
        for partition_id in (0, 1):
            result = train_client(space, start, partition_id=partition_id, server_round=1, lr=0.05)
        assert space.passes.mode == mode
        updates.append(result.update.clone())
    tolerance = 1e-4 if precision == "fp32" else 0.05
    assert float((updates[0] - updates[1]).norm()) <= tolerance * float(updates[0].norm())
