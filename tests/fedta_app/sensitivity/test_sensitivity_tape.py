"""The scores themselves, on both paths, against a loop over examples and against curvlinops."""

import pytest
import torch
from torch import Tensor, nn

from fedta_app.sensitivity import Trusted, fisher_diagonal, fisher_into, paths
from fedta_app.sensitivity.layers import UnsupportedModelError
from tests.fedta_app.sensitivity.sensitivity_models import (
    CLASSES,
    FAST,
    SLOW,
    Backbone,
    Escaping,
    WeightNorm,
    assert_scores_close,
    cnn,
    flat,
    naive,
    per_example,
    prepare,
    resnet,
    vit,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture
def looped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the loop took."""
    calls: list[int] = []
    loop = paths.add_by_loop

    def record(model, totals, batch, objective):
        calls.append(len(batch.images))
        return loop(model, totals, batch, objective)

    monkeypatch.setattr(paths, "add_by_loop", record)
    return calls


@pytest.mark.parametrize("output", ["log_prob", "logit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FAST)
def test_equals_a_loop_over_examples(name, dtype, output, looped):
    model, batches = prepare(*FAST[name], dtype)
    scores = fisher_diagonal(model, batches, labels="true", output=output)
    assert_scores_close(scores, naive(model, batches, output), TOLERANCE[dtype])
    assert looped == [2]  # the check


@pytest.mark.parametrize("output", ["log_prob", "logit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", SLOW)
def test_other_models_equal_the_loop_too(make, dtype, output, looped):
    model, batches = prepare(make, (16, 16), dtype)
    scores = fisher_diagonal(model, batches, labels="true", output=output)
    assert_scores_close(scores, naive(model, batches, output), TOLERANCE[dtype])
    assert looped[-2:] == [4, 3]


def test_a_reparametrised_weight_is_pulled_back_on_the_fast_path(looped):
    model, batches = prepare(WeightNorm, (16, 16), torch.float64)
    scores = fisher_diagonal(model, batches, labels="true")
    assert_scores_close(scores, naive(model, batches), 1e-10)
    assert looped == [2]  # the check


def totals_of(model, batches, trusted=None):
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    fisher_into(model, totals, batches, labels="true", trusted=trusted)
    return totals


def test_whoever_scores_for_many_clients_has_the_tape_checked_once(looped):
    """With the bits of a process that serves this client first; an image size is checked alone."""
    model, clients = prepare(resnet, (16, 16))
    trusted: Trusted = {}
    for batches, checked in ((clients[:1], [2]), (clients[1:], [])):
        expected = totals_of(model, batches)
        looped.clear()
        found = totals_of(model, batches, trusted)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert looped == checked
    looped.clear()
    larger = [(torch.randn(3, 3, 20, 20), torch.tensor([0, 1, 2]))]
    totals_of(model, larger, trusted)
    assert looped == [2]


def test_one_example_alone_is_no_check_of_two_together(looped):
    model, batches = prepare(cnn, (16, 16))
    images, labels = batches[0]
    trusted: Trusted = {}
    totals_of(model, [(images[:1], labels[:1])], trusted)
    totals_of(model, [(images[1:2], labels[1:2])], trusted)
    assert looped == [1]
    totals_of(model, batches, trusted)
    assert looped == [1, 2]


def test_a_model_that_the_tape_gets_wrong_is_never_trusted(looped):
    model, batches = prepare(Escaping, (16, 16))
    trusted: Trusted = {}
    expected = naive(model, batches)
    for _ in range(2):
        looped.clear()
        assert_scores_close(totals_of(model, batches, trusted), expected, 1e-5)
        assert trusted == {} and sum(looped) >= sum(len(images) for images, _ in batches)


def test_an_input_overwritten_in_place_is_noticed(looped):
    class Overwriting(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def mix(self, x: Tensor) -> Tensor:
            x = torch.sin(x)
            y = self.layer(x)
            x.mul_(2.0)
            return x + y

    model, batches = prepare(Overwriting, (16, 16))
    with pytest.raises(RuntimeError, match="inplace operation"):  # as in training
        naive(model, batches)
    with pytest.raises(UnsupportedModelError, match="changed in place"):
        paths.add_by_tape(
            model,
            {name: torch.zeros_like(p) for name, p in model.named_parameters()},
            paths.Batch(*batches[0], torch.arange(4)),
            paths.Objective(sampled=False, log_prob=False),
        )


def test_small_temporaries_do_not_change_the_result(monkeypatch):
    model, batches = prepare(cnn, (16, 16), torch.float64)
    expected = naive(model, batches)
    monkeypatch.setattr("fedta_app.sensitivity.layers._CPU_BYTES", 1)
    assert_scores_close(fisher_diagonal(model, batches, labels="true"), expected, 1e-10)


def unfused_vit() -> nn.Module:
    model = vit(embed_dim=4, num_heads=1, depth=1, mlp_ratio=1.0)
    model.blocks[0].attn.fused_attn = False  # curvlinops needs forward-mode derivatives
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # in a dependency of curvlinops
@pytest.mark.parametrize("make", [resnet, unfused_vit])
def test_true_labels_give_the_diagonal_of_the_empirical_fisher(make):
    model, batches = prepare(make, (16, 16), torch.float64)
    import curvlinops

    loss = nn.CrossEntropyLoss(reduction="sum")
    operator = curvlinops.EFLinearOperator(model, loss, list(model.parameters()), batches)
    expected = (operator @ torch.eye(operator.shape[1], dtype=torch.float64)).diagonal()
    actual = flat(fisher_diagonal(model, batches, labels="true"))
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-12 * float(expected.max()))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # in a dependency of curvlinops
@pytest.mark.parametrize("make", [resnet, unfused_vit])
def test_the_expectation_over_labels_is_the_diagonal_of_the_gauss_newton_matrix(make):
    model, batches = prepare(make, (16, 16), torch.float64, count=4)
    images = batches[0][0]
    probabilities = model(images).softmax(1).detach()
    actual = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for label in range(CLASSES):
        for image, probability in zip(images, probabilities[:, label], strict=True):
            batch = [(image[None], torch.tensor([label]))]
            actual += probability * flat(fisher_diagonal(model, batch, labels="true"))
    import curvlinops

    loss = nn.CrossEntropyLoss(reduction="sum")
    data = [(images, torch.zeros(4, dtype=torch.int64))]
    operator = curvlinops.GGNLinearOperator(model, loss, list(model.parameters()), data)
    expected = (operator @ torch.eye(operator.shape[1], dtype=torch.float64)).diagonal()
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-12 * float(expected.max()))


def test_the_logit_score_exceeds_the_fisher_by_the_squared_mean_logit_gradient():
    model, batches = prepare(cnn, (16, 16), torch.float64)
    image = batches[0][0][:1]
    weights = model(image)[0].softmax(0).detach()
    by_label = [[(image, torch.tensor([label]))] for label in range(CLASSES)]
    fisher, raw = (
        sum(
            w * flat(fisher_diagonal(model, b, labels="true", output=output))
            for w, b in zip(weights, by_label, strict=True)
        )
        for output in ("log_prob", "logit")
    )
    parameters = list(model.parameters())
    mean_logit = torch.autograd.grad(model(image)[0] @ weights, parameters)
    gap = torch.cat([g.flatten() for g in mean_logit]).square()
    torch.testing.assert_close(raw, fisher + gap, rtol=1e-9, atol=1e-12)


def test_squaring_the_gradient_of_a_batch_is_something_else():
    model, batches = prepare(vit, (16, 16), torch.float64)
    scores = fisher_diagonal(model, batches, labels="true")
    gradients = per_example(model, batches)
    ratios = [
        (len(g) * g.mean(0).square()).sum() / scores[name].sum() for name, g in gradients.items()
    ]
    assert max(ratios) < 0.8
