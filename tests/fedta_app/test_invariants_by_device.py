"""What is promised of a client's steps, on the CPU and, where there is one, on a CUDA GPU."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fedta_app.config import RunConfig
from fedta_app.device.cuda import to_device
from fedta_app.optim.sparse_sgdm import SparseSGDM
from fedta_app.seeding import torch_generator
from fedta_app.training.client import train_client
from fedta_app.training.steps import evaluate, make_optimizer
from fedta_app.training.workspace import Workspace, build_workspace
from fedta_app.vectors import FlatMask

BASE = {
    "weights": "random", "num-clients": 20, "lr": 0.05, "threads": 1,
    "momentum": 0.9, "weight-decay": 0.01,
}  # fmt: skip
HALF = ["bf16", "fp16"]
MODES = ["off", "cuda-graph"]


def workspace(device: torch.device, **values: object) -> Workspace:
    return build_workspace(RunConfig.from_mapping({**BASE, "device": str(device), **values}))


def random_mask(space: Workspace, density: float = 0.3) -> FlatMask:
    number = space.weights.vector.numel()
    drawn = torch.rand(number, generator=torch_generator(0, "test mask")) < density
    for name, view in space.weights.views(drawn).items():
        if name.endswith("norm1.bias"):
            view.zero_()  # a tensor that is frozen whole
    return FlatMask(drawn.to(space.device))


def updates(space: Workspace, masked: bool, clients: tuple[int, ...] = (0, 1, 2)) -> list[Tensor]:
    """Train some clients, one after the other, from the same weights."""
    start = space.weights.vector.clone()
    mask = random_mask(space) if masked else None
    found = []
    for partition_id in clients:
        down = FlatMask(torch.ones_like(start, dtype=torch.bool)) if mask else None
        result = train_client(
            space, start, partition_id=partition_id, server_round=1, lr=0.05, down=down, up=mask
        )
        found.append(result.update.clone())
        if mask:
            frozen = ~mask.mask
            local, before = space.weights.vector[frozen], start[frozen]
            assert torch.equal(local.view(torch.int32), before.view(torch.int32))
            assert not torch.equal(space.weights.vector, start)
        assert found[-1].isfinite().all() and found[-1].any()
    space.weights.load(start)
    return found


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", *HALF])
def test_frozen_weights_keep_their_bits(
    device: torch.device, precision: str, mode: str, clip: float
) -> None:
    if mode == "cuda-graph" and device.type == "cpu":
        pytest.skip("a CPU has no graphs")
    space = workspace(device, precision=precision, compile=mode, **{"clip-norm": clip})
    updates(space, masked=True)
    assert space.passes.mode == mode


@pytest.mark.parametrize("precision", ["fp32", *HALF])
def test_two_equal_runs_give_the_same_bits(device: torch.device, precision: str) -> None:
    runs = [updates(workspace(device, precision=precision), masked=True) for _ in range(2)]
    assert same(*runs)


@pytest.mark.parametrize("precision", HALF)
def test_an_all_true_mask_is_no_mask(device: torch.device, precision: str) -> None:
    space = workspace(device, precision=precision)
    start = space.weights.vector.clone()
    everything = FlatMask(torch.ones_like(start, dtype=torch.bool))
    found = [
        train_client(space, start, partition_id=0, server_round=1, lr=0.05, up=up).update.clone()
        for up in (None, everything)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("precision", ["fp32", *HALF])
def test_a_graph_gives_the_bits_of_eager_steps(
    cuda: torch.device, precision: str, masked: bool
) -> None:
    spaces = [workspace(cuda, precision=precision, compile=mode) for mode in MODES]
    eager, replayed = (updates(space, masked) for space in spaces)
    assert spaces[1].passes.mode == "cuda-graph"
    assert [recording is not None for recording in spaces[1].passes._recordings.values()] == [True]
    assert same(eager, replayed)


def test_dropout_in_a_graph_is_drawn_anew_and_by_its_key(cuda: torch.device) -> None:
    runs = []
    for _ in range(2):
        space = workspace(cuda, compile="cuda-graph")
        for module in space.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        first = updates(space, masked=False, clients=(0, 0, 0, 1))
        assert torch.equal(first[1], first[2]) and not torch.equal(first[2], first[3])
        runs.append(first)
    assert same(*runs)


@pytest.mark.filterwarnings("ignore")  # of the compiler: that TF32 would be faster
@pytest.mark.parametrize("masked", [False, True])
def test_compiled_steps_stay_close_to_eager_ones(cuda: torch.device, masked: bool) -> None:
    spaces = [workspace(cuda, precision="fp32", compile=mode) for mode in ("off", "inductor")]
    eager, compiled = (updates(space, masked) for space in spaces)
    assert spaces[1].passes.mode == "inductor"
    for a, b in zip(eager, compiled, strict=True):
        assert float((a - b).norm()) < 1e-3 * float(a.norm())


@contextlib.contextmanager
def nobody_waits() -> Iterator[None]:
    """Let torch raise where the CPU would wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_no_step_waits_for_the_gpu(cuda: torch.device, mode: str, masked: bool) -> None:
    space = workspace(cuda, precision="bf16", compile=mode, **{"clip-norm": 1.0})
    masks = space.weights.views(random_mask(space).mask) if masked else None
    optimizer = make_optimizer(space.config, space.model, masks)
    images = space.client_data(0)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    space.model.train()

    def step() -> None:
        positions = torch.randperm(len(images))[:12]
        batch = images.subset(to_device(positions, space.device))
        inputs = space.inputs(batch.images, torch_generator(0, "test"))
        optimizer.zero_grad()
        space.passes(inputs, batch.labels, scaler)
        optimizer.mask_gradients()
        optimizer.step()

    for _ in range(3):
        step()  # memory is found and graphs are recorded
    torch.cuda.synchronize()
    with nobody_waits():
        for _ in range(3):
            step()


def test_setting_masks_counts_them_all_at_once(device: torch.device) -> None:
    space = workspace(device)
    named = space.weights.views(random_mask(space).mask)
    optimizer = make_optimizer(space.config, space.model, named)
    names = {parameter: name for name, parameter in space.model.named_parameters()}
    assert {names[p] for p in optimizer._frozen} == {n for n, m in named.items() if not m.any()}
    assert {names[p] for p in optimizer._masks} == {n for n, m in named.items() if not m.all()}
    optimizer.set_masks({})
    assert not optimizer._masks
    assert isinstance(optimizer, SparseSGDM)


def test_evaluation_agrees_between_precisions(device: torch.device) -> None:
    exact = workspace(device, **{"eval-size": 60})
    rough = workspace(device, precision="bf16", **{"eval-size": 60})
    losses = [evaluate(space, space.evaluation_sets[0])[0] for space in (exact, rough)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_transformers_use_fused_attention(device: torch.device) -> None:
    space = workspace(device)
    flags = [m.fused_attn for m in space.model.modules() if hasattr(m, "fused_attn")]
    assert flags and all(flags)
