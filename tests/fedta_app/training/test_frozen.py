"""Training the last blocks behind cached tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedta_app.config import RunConfig
from fedta_app.seeding import torch_generator
from fedta_app.training import frozen
from fedta_app.training.client import train_client
from fedta_app.training.scoring import client_batches, scores
from fedta_app.training.steps import evaluate, mini_batches
from fedta_app.training.workspace import Workspace, build_workspace

VALUES = {
    "trained-blocks": 1, "head": "ridge", "num-clients": 10, "local-steps": 3, "momentum": 0.9,
    "augment": False, "lr": 0.1, "mask-rule": "least-sensitive", "calibration-rounds": 1,
}  # fmt: skip


def workspace(**values: Any) -> Workspace:
    return build_workspace(RunConfig.from_mapping({**VALUES, "cache-dir": "", **values}))


def update(of: Workspace) -> Tensor:
    start = of.weights.vector.clone()
    found = train_client(of, start, partition_id=3, server_round=1, lr=0.1).update.clone()
    of.weights.load(start)
    return found


def test_a_client_trains_as_the_whole_model_with_frozen_blocks_does() -> None:
    """The reference is a plain loop over the whole model with torch's SGD."""
    here = workspace(augment=True)  # digits are not changed by it, but their tokens not cached
    start = {name: p.detach().clone() for name, p in here.built.model.named_parameters()}
    got = here.weights.views(update(here))
    reference = workspace().built.model
    reference.requires_grad_(False)
    trained = dict(reference.named_parameters())
    trained = {name: trained[name].requires_grad_(True) for name in here.weights.names}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1, momentum=0.9)
    images = here.data.train.subset(here.client_positions(3))
    order = torch_generator(here.config.seed, "batches", 1, 3)
    for batch in mini_batches(len(images), here.config.batch_size, 3, order):
        optimizer.zero_grad()
        logits = reference(here.pixels(images.images[batch]))
        nn.functional.cross_entropy(logits, images.labels[batch]).backward()
        optimizer.step()
    assert set(here.weights.names) == {
        name for name in start if name.startswith(("blocks.3.", "norm."))
    }
    for name, parameter in trained.items():
        assert torch.equal(got[name], parameter.detach() - start[name]), name


@pytest.mark.parametrize("values", [{}, {"augment": True, "cached-views": 3}], ids=str)
def test_bits_are_the_same_with_and_without_the_cache(
    values: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for folder in ("", str(tmp_path), str(tmp_path)):  # computed, computed and kept, read
        here = workspace(**{"dataset": "digits", "cache-dir": folder, **values})
        batches = client_batches(here, 3)
        found.append(
            torch.cat(
                [
                    update(here),
                    scores(here, batches, None, 1),
                    torch.tensor(evaluate(here, here.evaluation_sets[0])),
                ]
            )
        )
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert list(tmp_path.glob("tokens-*"))


def test_tokens_do_not_depend_on_the_number_of_cpus_and_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, found, pools = torch.get_num_threads(), [], []
    pool = frozen.ThreadPoolExecutor

    def noted(workers: int, **options: Any) -> Any:
        pools.append(workers)
        return pool(workers, **options)

    monkeypatch.setattr(frozen, "ThreadPoolExecutor", noted)
    try:
        for cpus, number in ((1, 1), (3, 1), (2, 2)):
            monkeypatch.setattr(frozen, "usable_cpus", lambda cpus=cpus: cpus)
            found.append(workspace(threads=number).plain.val.images)
            assert torch.get_num_threads() == number  # as before
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert set(pools) == {1, 2, 3}  # all CPUs, also where a cell has one thread


def test_each_view_is_an_augmented_image_of_its_own() -> None:
    """On images that are shifted and mirrored; of a small part, because 50,000 take a minute."""
    here = workspace(dataset="synthetic", model="vit_cifar", augment=True, **{"cached-views": 4})
    small = here.data.train.subset(range(70))
    object.__setattr__(here, "data", here.data.__class__(**{**vars(here.data), "train": small}))
    tokens = here.train_images.images
    assert tokens.shape[:2] == (70, 4)
    views = tokens.flatten(2).unbind(1)
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])
    # The second view of the second chunk, by hand.
    drawn = here._augmented(small.images[64:], torch_generator(0, "view", 1, 1))
    expected = here.stem.tokens(here.pixels(drawn))  # type: ignore[union-attr]
    assert torch.equal(tokens[64:, 1], expected)
    # A batch takes one view of each image, by the generator.
    batch = here.inputs(tokens[:6], torch.Generator().manual_seed(0))
    chosen = torch.randint(0, 4, (6,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(batch, tokens[torch.arange(6), chosen])


def test_another_augmentation_or_its_code_gives_other_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(**changed: Any) -> int:
        here = workspace(**{"cache-dir": str(tmp_path), "augment": True, "cached-views": 1})
        few = here.data.train.subset(range(3))
        object.__setattr__(here, "data", replace(here.data, train=few, **changed))
        _ = here.train_images
        return len(list(tmp_path.glob("tokens-*")))

    assert [entries(), entries(crop_padding=1), entries(flip=True), entries()] == [1, 2, 3, 3]
    monkeypatch.setattr(frozen, "CODE", "other")
    assert entries() == 4


def test_scores_cover_the_trained_blocks_and_match_the_whole_model() -> None:
    here = workspace(augment=True)
    whole = workspace(**{"trained-blocks": 0})
    got = scores(here, client_batches(here, 3), None, 1)
    expected = whole.weights.views(scores(whole, client_batches(whole, 3), None, 1))
    for name, value in here.weights.views(got).items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-9), name


def test_weights_that_are_loaded_later_have_tokens_of_their_own(tmp_path: Path) -> None:
    trained = workspace(**{"cache-dir": str(tmp_path)})
    random = workspace(**{"cache-dir": str(tmp_path), "weights": "random"})
    random.built.model.load_state_dict(trained.built.model.state_dict())
    assert torch.equal(random.plain.val.images, trained.plain.val.images)
    again = workspace(**{"cache-dir": str(tmp_path), "weights": "random"})
    assert not torch.equal(again.plain.val.images, trained.plain.val.images)
