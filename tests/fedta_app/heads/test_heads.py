from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from torch.nn import functional

from fedta_app.heads import ridge as ridge_module
from fedta_app.heads.ridge import (
    RELATIVE_RIDGES,
    TEMPERATURES,
    RidgeStatistics,
    fit_temperature,
    select_ridge,
)

D, C, N = 24, 20, 2000


def make_examples(seed=0, n=N, d=D, num_classes=C, present=None):
    """Correlated features with a large mean, so that centring matters, and unequal classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, present or num_classes, n)
    labels = np.where(rng.random(n) < 0.2, 0, labels)
    centres = rng.normal(size=(num_classes, d))
    mixing = rng.normal(size=(d, d)) * np.geomspace(1, 1e-2, d)
    features = 5 + centres[labels] + rng.normal(size=(n, d)) @ mixing
    return torch.from_numpy(features), torch.from_numpy(labels)


def split(labels, classes_per_client, num_clients=20):
    """Indices per client: all of them mixed, or shards of so many classes each."""
    if classes_per_client is None:
        return np.array_split(np.random.default_rng(1).permutation(len(labels)), num_clients)
    groups = [
        [(client * classes_per_client + step) % C for step in range(classes_per_client)]
        for client in range(num_clients)
    ]
    owners = {c: [k for k, group in enumerate(groups) if c in group] for c in range(C)}
    clients = [[] for _ in groups]
    for label in range(C):
        for index in np.flatnonzero(labels == label):
            clients[owners[label][index % len(owners[label])]].append(index)
    return [np.array(client) for client in clients]


def sklearn_head(features, labels, ridge, num_classes=C):
    targets = np.eye(num_classes)[labels.numpy()]
    model = Ridge(alpha=ridge, fit_intercept=True, solver="svd").fit(features.numpy(), targets)
    return torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)


def assert_heads_equal(head, expected, rtol=1e-8):
    for value, reference in zip(head, expected, strict=True):
        assert value.dtype == torch.float64
        assert value.shape == reference.shape
        torch.testing.assert_close(value, reference, rtol=rtol, atol=rtol * float(reference.std()))


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("classes_per_client", [None, 10, 5, 1])
def test_federated_head_is_the_centralised_one(classes_per_client, ridge):
    features, labels = make_examples()
    clients = split(labels.numpy(), classes_per_client)
    assert sorted(np.concatenate(clients)) == list(range(N))
    parts = [RidgeStatistics(D, C).add(features[i], labels[i]) for i in clients]
    wire = [RidgeStatistics.from_vector(part.to_vector(), D, C) for part in parts]
    federated = reduce(add, wire).solve(ridge)
    assert_heads_equal(federated, RidgeStatistics(D, C).add(features, labels).solve(ridge))
    assert_heads_equal(federated, sklearn_head(features, labels, ridge))


def test_order_of_clients_and_batches_does_not_matter():
    features, labels = make_examples()
    forwards, backwards = RidgeStatistics(D, C), RidgeStatistics(D, C)
    batches = torch.arange(N).split(77)
    for batch in batches:
        forwards.add(features[batch], labels[batch])
    for batch in reversed(batches):
        backwards.add(features[batch.flip(0)], labels[batch.flip(0)])
    assert forwards.count == backwards.count == N
    assert_heads_equal(forwards.solve(0.5), backwards.solve(0.5))


def test_float32_features_are_accumulated_in_float64():
    features, labels = make_examples()
    single = features.float()
    statistics = RidgeStatistics(D, C).add(single, labels.int())
    assert_heads_equal(statistics.solve(0.1), sklearn_head(single.double(), labels, 0.1))


def test_addition_leaves_its_operands_alone():
    features, labels = make_examples()
    first = RidgeStatistics(D, C).add(features[:100], labels[:100])
    second = RidgeStatistics(D, C).add(features[100:], labels[100:])
    before = first.to_vector(), second.to_vector()
    total = first + second
    total.add(features, labels)
    assert torch.equal(first.to_vector(), before[0])
    assert torch.equal(second.to_vector(), before[1])
    assert total.count == 2 * N


def test_absent_classes_get_zeros_and_leave_the_others_alone():
    features, labels = make_examples(present=7)
    weight, bias = RidgeStatistics(D, C).add(features, labels).solve(1.0)
    assert_heads_equal((weight, bias), sklearn_head(features, labels, 1.0))
    assert not weight[7:].abs().max() > 1e-12
    assert not bias[7:].abs().max() > 1e-12
    fewer = RidgeStatistics(D, 7).add(features, labels).solve(1.0)
    assert_heads_equal((weight[:7], bias[:7]), fewer)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_fewer_examples_than_features(ridge):
    features, labels = make_examples(n=D // 2)
    weight, bias = RidgeStatistics(D, C).add(features, labels).solve(ridge)
    if ridge:
        assert_heads_equal((weight, bias), sklearn_head(features, labels, ridge), rtol=1e-7)
    else:  # least norm: the pseudo-inverse of the centred features
        centred = features - features.mean(0)
        targets = functional.one_hot(labels, C).double()
        expected = (torch.linalg.pinv(centred) @ (targets - targets.mean(0))).T
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 1e-300])
def test_constant_features_give_the_class_shares(ridge):
    _, labels = make_examples()
    statistics = RidgeStatistics(D, C).add(torch.full((N, D), 3.7), labels)
    weight, bias = statistics.solve(ridge)
    shares = torch.bincount(labels, minlength=C) / N
    torch.testing.assert_close(weight @ torch.full((D,), 3.7).double() + bias, shares.double())
    assert weight.abs().max() == 0
    assert statistics.scale() < 1e-6 * N


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e5])
def test_what_lapack_gets_is_of_the_size_of_1_and_no_bit_changes(size, monkeypatch):
    """On the rounding that is left of nearly constant features it does not converge."""
    features, labels = make_examples()
    statistics = RidgeStatistics(D, C).add(size * features.double(), labels)
    gram, _ = statistics._centred()
    eigh, given = torch.linalg.eigh, []

    def remembered(matrix):
        given.append(float(matrix.abs().max()))
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", remembered)
    values, vectors = ridge_module._decomposed(gram)
    assert 0.5 <= given[0] < 1
    assert all(map(torch.equal, (values, vectors), eigh(gram)))
    assert all(part.isfinite().all() for part in ridge_module._decomposed(torch.zeros(D, D)))


def test_path_equals_solving_each():
    features, labels = make_examples()
    statistics = RidgeStatistics(D, C).add(features, labels)
    ridges = [1e-3, 1.0, 100.0, 0.0]
    for ridge, head in zip(ridges, statistics.path(ridges), strict=True):
        assert_heads_equal(head, statistics.solve(ridge))


def test_relative_ridges_follow_scale_and_amount_of_the_data():
    features, labels = make_examples()
    once = RidgeStatistics(D, C).add(features, labels)
    variance = float(features.var(0, correction=0).mean())
    assert once.scale() == pytest.approx(N * variance)
    ridge = 0.1 * once.scale()
    scaled = RidgeStatistics(D, C).add(3 * features, labels).add(3 * features, labels)
    weight, bias = scaled.solve(0.1 * scaled.scale())
    assert_heads_equal((3 * weight, bias), once.solve(ridge))


def test_wire_round_trip_is_exact_and_small():
    statistics = RidgeStatistics(D, C).add(*make_examples())
    vector = statistics.to_vector()
    assert vector.dtype == torch.float64
    assert len(vector) == D * (D + 1) // 2 + C * D + C
    back = RidgeStatistics.from_vector(vector, D, C)
    assert torch.equal(back.gram, statistics.gram)
    assert torch.equal(back.to_vector(), vector)
    assert all(map(torch.equal, back.solve(1.0), statistics.solve(1.0)))
    vector.zero_()  # the statistics own their numbers
    assert back.count == N


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_any_division_gives_the_same_statistics(data):
    features, labels = make_examples(n=60, d=6, num_classes=4)
    owner = np.array(data.draw(st.lists(st.integers(0, 5), min_size=60, max_size=60)))
    parts = [RidgeStatistics(6, 4).add(features[owner == k], labels[owner == k]) for k in range(6)]
    whole = RidgeStatistics(6, 4).add(features, labels)
    torch.testing.assert_close(
        reduce(add, parts).to_vector(), whole.to_vector(), rtol=1e-12, atol=0
    )


def test_select_ridge_takes_the_best_on_validation():
    rng = np.random.default_rng(3)
    features, labels = make_examples(n=60)  # few noisy examples: the strength matters
    features = features + torch.from_numpy(rng.normal(size=features.shape))
    validation, truth = make_examples(seed=0, n=800)
    statistics = RidgeStatistics(D, C).add(features, labels)
    ridges = [relative * statistics.scale() for relative in RELATIVE_RIDGES]
    accuracies = []
    for ridge in ridges:
        weight, bias = sklearn_head(features, labels, ridge)
        predicted = (validation @ weight.T + bias).argmax(1)
        accuracies.append(int((predicted == truth).sum()))
    chosen = select_ridge(statistics, validation, truth)
    best = [
        ridge for ridge, right in zip(ridges, accuracies, strict=True) if right == max(accuracies)
    ]
    assert chosen == max(best)
    assert min(accuracies) < max(accuracies)


def test_ties_go_to_the_stronger_ridge():
    features, labels = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    statistics = RidgeStatistics(1, 2).add(features, labels)  # any ridge classifies both correctly
    assert select_ridge(statistics, features, labels) == RELATIVE_RIDGES[-1] * statistics.scale()


def test_fit_temperature_takes_the_most_likely():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(500, C, generator=generator, dtype=torch.float64) * 2
    labels = torch.distributions.Categorical(logits=clean).probs.multinomial(
        1, generator=generator
    )[:, 0]
    logits = clean * 0.05  # sharpness known: dividing by 0.05 restores it
    by_hand = [
        -torch.log_softmax(logits / t, 1)[torch.arange(500), labels].sum() for t in TEMPERATURES
    ]
    fitted = fit_temperature(logits.float(), labels)
    assert fitted == TEMPERATURES[int(torch.stack(by_hand).argmin())]
    assert 0.04 < fitted < 0.0625


def test_temperature_makes_ridge_outputs_a_calibrated_softmax():
    features, labels = make_examples()
    weight, bias = RidgeStatistics(D, C).add(features, labels).solve(1.0)
    logits = features @ weight.T + bias
    scaled = logits / fit_temperature(logits, labels)
    assert torch.equal(scaled.argmax(1), logits.argmax(1))
    before = float(functional.cross_entropy(logits, labels))
    after = float(functional.cross_entropy(scaled, labels))
    accuracy = (logits.argmax(1) == labels).double().mean()
    assert before > 0.7 * np.log(C)
    assert after < 0.5 * before
    assert abs(float(scaled.softmax(1).amax(1).mean() - accuracy)) < 0.1


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda: RidgeStatistics(0, 3), "num_features is 0"),
        (lambda: RidgeStatistics(D, C).solve(1.0), "no example"),
        (lambda: RidgeStatistics(D, C).add(torch.zeros(2, D + 1), torch.zeros(2).long()), "shapes"),
        (lambda: RidgeStatistics(D, C).add(torch.zeros(2, D), torch.zeros(3).long()), "shapes"),
        (lambda: RidgeStatistics(D, C).add(torch.zeros(1, D), torch.tensor([C])), "labels must"),
        (lambda: RidgeStatistics(D, C).add(torch.zeros(1, D), torch.tensor([-1])), "labels must"),
        (lambda: RidgeStatistics(D, C).add(torch.zeros(1, D), torch.tensor([0.5])), "labels must"),
        (
            lambda: RidgeStatistics(1, 1).add(torch.tensor([[torch.nan]]), torch.zeros(1).long()),
            "NaN",
        ),
        (lambda: RidgeStatistics(D, C).add(*make_examples()).solve(-1.0), "ridge is -1.0"),
        (lambda: RidgeStatistics(D, C).add(*make_examples()).path([np.nan]), "ridge is nan"),
        (lambda: RidgeStatistics(D, C) + RidgeStatistics(D, C + 1), "cannot be added"),
        (lambda: RidgeStatistics.from_vector(torch.zeros(5).double(), D, C), "vector is"),
        (lambda: RidgeStatistics.from_vector(torch.zeros(3), 1, 1), "vector is torch.float32"),
        (lambda: fit_temperature(torch.zeros(1, 2), torch.zeros(2).long()), "shapes"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(action, sentence):
    with pytest.raises(ValueError, match=sentence):
        action()
