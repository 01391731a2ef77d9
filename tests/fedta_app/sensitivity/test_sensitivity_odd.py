"""Models that are scored right only example by example, and what is left of them afterwards."""

import copy
import logging

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fedta_app.models import build_model
from fedta_app.sensitivity import evaluation_mode, fisher_diagonal, paths
from tests.fedta_app.sensitivity.odd_models import (
    ODD,
    Caches,
    CachesInBuffer,
    DividesByLargest,
    Layered,
    Remembers,
    assert_as_alone,
)
from tests.fedta_app.sensitivity.sensitivity_models import (
    CLASSES,
    Backbone,
    Shared,
    TokensFirst,
    assert_scores_close,
    cnn,
    naive,
    vit,
)


def some_batches(*sizes: int, image=(16, 16), dtype=torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 3, *image, dtype=dtype, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for size in sizes
    ]


def made(make, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return make().to(dtype).eval()


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("sizes", [(5, 2), (2, 5), (1, 4), (4, 1)], ids=str)
def test_equals_each_example_alone(make, sizes):
    assert_as_alone(made(make), some_batches(*sizes))


def test_batches_of_two_are_not_taken_for_two_tokens():
    assert_as_alone(made(TokensFirst), some_batches(2, 2, image=(8, 16)))


def test_an_image_size_that_comes_later_is_checked_too():
    two_tokens = some_batches(2, image=(8, 16))
    assert_as_alone(made(TokensFirst), some_batches(1, image=(8, 8)) + two_tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("xcit_nano_12_p16_224", 32), ("levit_128s", 64), ("efficientformer_l1", 224)],
)
def test_models_of_timm_equal_each_example_alone(name, size):
    options = {} if size == 224 else {"img_size": size}
    model = made(lambda: timm.create_model(name, num_classes=CLASSES, **options))
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    batches, oracle = some_batches(3, image=(size, size)), copy.deepcopy(model)
    with torch.no_grad():
        model(batches[0][0])  # fills caches
    assert_as_alone(model, batches, oracle)


# Kinds that need more than one call


@pytest.mark.parametrize("make", [Caches, CachesInBuffer])
def test_what_a_model_kept_from_other_weights_does_not_count(make):
    model, batches = made(make), some_batches(3)
    if make is Caches:
        with torch.inference_mode():
            model(batches[0][0])
        kept = dict(model.cache)
    with torch.no_grad():
        model.biases.mul_(-2)
    fresh = made(make)
    fresh.load_state_dict(model.state_dict())
    assert_as_alone(model, batches, fresh)
    if make is Caches:
        assert model.cache.keys() == kept.keys()
        assert model.cache["cpu"] is kept["cpu"]
    else:
        assert not model.fresh
        assert not model.table.requires_grad
        assert not model.table.any()


def test_a_statistic_of_several_batches_finds_the_same_state():
    model, batches = made(Caches), some_batches(3, 2)
    with evaluation_mode(model):
        for images, _ in batches:  # without it, the second would differentiate a freed graph
            torch.autograd.grad(model(images).sum(), model.biases)
    assert not model.cache


def test_first_layers_under_reentrant_checkpoints_are_not_missed():
    class Whole(nn.Sequential):
        reentrant = True

        def forward(self, x: Tensor) -> Tensor:
            if not self.reentrant:
                return super().forward(x)
            return self[2](checkpoint(nn.Sequential(self[0], self[1]), x, use_reentrant=True))

    model = made(lambda: Whole(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(), nn.Linear(16, CLASSES)))
    batches = some_batches(3, 2)
    model.reentrant = False
    expected = naive(model, batches)
    model.reentrant = True
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        scores = fisher_diagonal(model, batches, labels="true")
    assert_scores_close(scores, expected, 1e-9)


def test_embeddings_of_integers_with_sparse_gradients():
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, CLASSES))
    tokens = torch.randint(7, (5, 3), generator=torch.Generator().manual_seed(0))
    assert_as_alone(model.double(), [(tokens, torch.arange(5))])


@pytest.mark.parametrize("make", [vit, Shared])
def test_inference_mode_around_does_not_matter(make):
    model, batches = made(make), some_batches(3, 2)
    expected = naive(model, batches)
    with torch.inference_mode():
        scores = fisher_diagonal(model, batches, labels="true")
    assert_scores_close(scores, expected, 1e-9)


@pytest.mark.parametrize("broken", ["add_linear", "add_product", "add_sum", "add_convolution"])
def test_a_wrong_rule_of_the_tape_is_noticed(broken, monkeypatch):
    from fedta_app.sensitivity import layers, tape

    right = getattr(layers, broken)

    def wrong(*arguments):
        *others, gradient, source = arguments if len(arguments) > 2 else (*arguments, None)
        right(*others, 1.2 * gradient, source)

    monkeypatch.setattr(tape, broken, wrong)
    assert_as_alone(made(lambda: vit(init_values=0.3)), some_batches(4, 3))


# What a run says


def test_it_is_said_once_why_a_model_is_scored_example_by_example(caplog):
    paths._say.cache_clear()
    batches = some_batches(3, 2)
    with caplog.at_level(logging.WARNING):
        fisher_diagonal(made(vit), batches)
        assert not caplog.records
        for _ in range(2):
            fisher_diagonal(made(DividesByLargest), batches)
            fisher_diagonal(made(Shared), batches)
    said = [record.getMessage().split(": ", 1) for record in caplog.records]
    assert said == [
        ["sensitivities are measured example by example, which is slower", reason]
        for reason in (
            "the logits of an example depend on the other examples of its batch",
            "a trainable parameter is used twice",
        )
    ]


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [("vit_digits", 1, 8), ("vit_cifar", 3, 32), ("cnn", 3, 32), ("resnet_gn", 1, 8)],
)
def test_nothing_is_said_of_the_models_of_this_repository(name, channels, size, caplog):
    weights = "pretrained" if name.startswith("vit") else "random"
    built = build_model(
        name, weights=weights, image_size=size, num_classes=5, in_channels=channels, seed=0
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, channels, size, size, generator=generator)
    with caplog.at_level(logging.WARNING):
        fisher_diagonal(built.model, [(images, torch.arange(4))])
    assert not caplog.records


def test_weights_that_diverged_are_not_taken_for_a_disagreement(caplog):
    model, batches = made(vit), some_batches(3, 2)
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] = torch.nan
    with caplog.at_level(logging.WARNING):
        scores = fisher_diagonal(model, batches, labels="true")
    assert scores["head.weight"].isnan().all()
    assert not caplog.records


# What is left untouched


@pytest.mark.parametrize("make", [Remembers, Caches, CachesInBuffer, Shared, cnn])
def test_a_looped_model_is_left_as_it_was(make):
    model, batches = made(make), some_batches(3, 2)
    if make is cnn:
        model(batches[0][0])
    model.train()
    list(model.modules())[1].eval()
    model.activations = []
    model.register_forward_hook(lambda module, _, output: module.activations.append(output))
    first, *others = (p for name, p in model.named_parameters() if "." in name)
    first.grad, steps = torch.ones_like(first), []
    first.register_post_accumulate_grad_hook(steps.append)  # an optimizer step in the backward pass
    others[-1].requires_grad_(False)
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    attributes = [set(module.__dict__) for module in model.modules()]
    fisher_diagonal(model, batches)
    assert [m.training for m in model.modules()] == modes
    assert [set(module.__dict__) for module in model.modules()] == attributes
    assert not model.activations
    assert not model._forward_pre_hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not steps
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(p.grad is None for p in others)
    assert [p.requires_grad for p in others] == [True] * (len(others) - 1) + [False]
    model(batches[0][0]).sum().backward()
    assert len(steps) == 1  # the hook is still there


def test_a_recurrent_layer_keeps_its_dropout():
    model, batches = made(ODD[2]), some_batches(2)
    fisher_diagonal(model.train(), batches)
    assert model.layer.dropout == 0.5


# What is refused


def batch_statistics() -> list[nn.Module]:
    class Functional(Layered):
        def mix(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.layer(x).mT, None, None, training=True).mT

    class Always(nn.BatchNorm1d):
        def train(self, mode: bool = True):
            return super().train(True)

    class Stubborn(Layered):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Always(4)

        def mix(self, x: Tensor) -> Tensor:
            return self.norm(self.layer(x))

    return [Functional(), Stubborn()]


@pytest.mark.parametrize("model", batch_statistics(), ids=lambda model: type(model).__name__)
def test_batch_statistics_in_evaluation_mode_are_refused(model):
    with pytest.raises(ValueError, match="normalises over the batch; use GroupNorm or LayerNorm"):
        fisher_diagonal(model.double(), some_batches(3))


def test_a_model_that_returns_no_tensor_is_refused():
    class Named(Backbone):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.patch(images).mean((2, 3)))}

    with pytest.raises(ValueError, match=r"must return logits .*, got a dict for images"):
        fisher_diagonal(made(Named), some_batches(3))
