import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from fedta_app.config import RunConfig
from fedta_app.device.cuda import resolve_device
from fedta_app.seeding import torch_generator
from fedta_app.training.client import train_client
from fedta_app.training.steps import (
    evaluate,
    images_of,
    make_optimizer,
    mini_batches,
    steps_of,
    train_steps,
)
from fedta_app.training.workspace import Workspace, build_workspace
from fedta_app.vectors.mask import FlatMask
from tests.ties import right

BASE = {"weights": "random", "num-clients": 20, "lr": 0.05, "augment": False, "threads": 1}


def workspace(**values: object) -> Workspace:
    return build_workspace(RunConfig.from_mapping({**BASE, **values}))


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 30))
@settings(deadline=None, max_examples=50)
def test_mini_batches_are_exactly_j_and_pass_over_everything(n: int, size: int, steps: int) -> None:
    batches = list(mini_batches(n, size, steps, torch_generator(0, "test")))
    assert images_of(n, size, steps) == sum(map(len, batches))
    assert len(batches) == steps
    assert all(1 <= len(batch) <= min(size, n) for batch in batches)
    drawn = torch.cat(batches)
    for start in range(0, len(drawn) - n + 1, n):
        assert sorted(drawn[start : start + n].tolist()) == list(range(n))


def test_no_local_steps_means_one_pass() -> None:
    assert steps_of(RunConfig(local_steps=0, batch_size=16), 40) == 3
    assert steps_of(RunConfig(local_steps=0, batch_size=16), 5) == 1
    assert steps_of(RunConfig(local_steps=7, batch_size=16), 40) == 7


@pytest.mark.parametrize(
    "values", [{}, {"weight-decay": 0.01, "momentum": 0.5}, {"clip-norm": 0.1}]
)
def test_a_client_does_what_a_plain_loop_does(values: dict[str, float]) -> None:
    ours, plain = workspace(**values), workspace(**values)
    images = ours.client_data(3)
    optimizer = torch.optim.SGD(
        plain.model.parameters(),
        lr=0.02,
        momentum=plain.config.momentum,
        weight_decay=plain.config.weight_decay,
    )
    losses = []
    order = torch_generator(0, "batches", 7, 3)
    for positions in mini_batches(len(images), 16, 4, order):
        optimizer.zero_grad()
        logits = plain.model(plain.inputs(images.images[positions]))
        loss = cross_entropy(logits, images.labels[positions])
        loss.backward()
        if plain.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(plain.model.parameters(), plain.config.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    start = ours.weights.vector.clone()
    result = train_client(ours, start, partition_id=3, server_round=7, lr=0.02)
    assert torch.equal(result.update, plain.weights.vector - start)
    assert result.loss == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert result.num_examples == len(images)


def test_training_depends_on_its_key_and_not_on_torchs_global_state() -> None:
    space = workspace(augment=True)
    start = space.weights.vector.clone()

    def update(server_round: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        result = train_client(space, start, partition_id=0, server_round=server_round, lr=0.05)
        assert torch.equal(torch.get_rng_state(), state)
        return result.update.clone()

    assert torch.equal(update(1, noise=1), update(1, noise=2))
    assert not torch.equal(update(1, noise=1), update(2, noise=1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_takes_every_step_and_ends_close_to_fp32(precision: str) -> None:
    updates = {}
    for kind in ("fp32", precision):
        space = workspace(precision=kind)
        start = space.weights.vector.clone()
        updates[kind] = train_client(space, start, partition_id=0, server_round=1, lr=0.05).update
    exact, rough = updates["fp32"], updates[precision]
    assert rough.dtype == torch.float32
    assert 0 < float((exact - rough).norm()) < 0.1 * float(exact.norm())


def test_a_frozen_entry_that_overflows_in_fp16_skips_no_step() -> None:
    updates = []
    for overflow in (False, True):
        space = workspace(precision="fp16")
        name, start = space.weights.names[0], space.weights.vector.clone()
        mask = torch.ones_like(start, dtype=torch.bool)
        mask[0] = False
        large = torch.zeros_like(space.model.get_parameter(name))
        large.view(-1)[0] = torch.inf if overflow else 0.0
        space.model.get_parameter(name).register_hook(large.add)
        down = FlatMask(mask)
        result = train_client(
            space, down.gather(start), partition_id=0, server_round=1, lr=0.05, down=down
        )
        updates.append(result.update.clone())
        assert space.weights.vector[0] == start[0]
    assert updates[0].any() and torch.equal(*updates)


def test_evaluation_equals_image_by_image() -> None:
    space = workspace(**{"eval-size": 37, "eval-batch-size": 10})
    images, _ = space.evaluation_sets
    loss, accuracy = evaluate(space, images)
    with torch.no_grad():
        one_by_one = [space.model(space.inputs(images.images[i : i + 1])) for i in range(37)]
    logits = torch.cat(one_by_one)
    assert len(images) == 37
    assert loss == pytest.approx(float(cross_entropy(logits, images.labels)), rel=1e-5)
    fewest, most = right(logits, images.labels).sum(1).tolist()
    assert fewest <= round(accuracy * 37, 9) <= most < fewest + 2


def test_momentum_lives_as_long_as_its_optimizer() -> None:
    space = workspace()
    optimizer = make_optimizer(space.config, space.model)
    images = space.client_data(0)
    train_steps(space, optimizer, images, lr=0.05, key=(1,))
    buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(buffers) == len(list(space.model.parameters()))
    assert all(buffer.any() for buffer in buffers)
    assert all(group["lr"] == 0.05 for group in optimizer.param_groups)
    assert not make_optimizer(space.config, space.model).state


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device = 'cuda:99' is not allowed: this machine has"):
        resolve_device("cuda:99")
    with pytest.raises(ValueError, match=r"device = 'cuda:9{30}' is not allowed: this machine has"):
        resolve_device("cuda:" + 30 * "9")
