import pytest
import torch
from torch import nn

from fedta_app.masks import (
    MASK_RULES,
    Calibration,
    build_mask,
    calibrate_mask,
    client_scores,
    maskable,
    needs_scores,
    rule_named,
)
from fedta_app.masks import calibration as calibration_module
from fedta_app.masks.calibration import softened
from fedta_app.sensitivity import fisher_diagonal, fisher_into
from fedta_app.vectors import FlatMask, Layout

AWKWARD = torch.tensor([-0.0, 1e-45, 3.3, -7.1, 1e38, 0.1])


def bits(tensor):
    return tensor.detach().view(torch.int32).tolist()


def start(rule, parameters, **values):
    layout = Layout.of(parameters)
    vector = layout.flatten(parameters)
    return Calibration(rule_named(rule), layout, vector, **values)


def test_densities_fall_geometrically_to_exactly_the_last():
    size = 10**5
    weights = {"w": torch.arange(size)}
    calibration = start("least-sensitive", weights, sparsity=0.9, num_rounds=4)
    numbers = []
    while not calibration.done:
        numbers.append(calibration.advance(torch.rand(size)).num_trained)
    assert numbers == [56234, 31623, 17783, 10000]  # 0.1 to the powers of 1/4, 2/4, 3/4, 1
    with pytest.raises(ValueError, match="all 4 rounds of the calibration are done"):
        calibration.advance(torch.rand(size))
    dense = start("least-sensitive", weights, sparsity=0.0, num_rounds=3)
    assert dense.advance(torch.rand(size)).num_trained == size


def test_a_calibration_goes_on_from_its_round_and_mask():
    weights = {"w": torch.zeros(1000)}
    values = {"sparsity": 0.9, "num_rounds": 3}
    scores = [torch.rand(1000) for _ in range(3)]
    unbroken = start("least-sensitive", weights, **values)
    broken = start("least-sensitive", weights, **values)
    for number in range(3):
        found = unbroken.advance(scores[number]).mask
        assert torch.equal(broken.advance(scores[number]).mask, found)
        bits = broken.mask.to_bits()
        mask = FlatMask.from_bits(bits, 1000, torch.device("cpu"))
        broken = start("least-sensitive", weights, **values, round=number + 1, mask=mask)
    assert broken.done


HALF = torch.tensor([True, True, False, False, True, False])


@pytest.mark.parametrize("soft_value", [0.0, 0.1, 0.5, 1.0])
def test_softened_scales_the_dropped_and_keeps_the_bits_of_the_kept(soft_value):
    vector = AWKWARD.clone()
    with softened([vector], FlatMask(HALF), soft_value):
        assert bits(vector[HALF]) == bits(AWKWARD[HALF])
        assert bits(vector[~HALF]) == bits(AWKWARD[~HALF] * soft_value)
    assert bits(vector) == bits(AWKWARD)


@pytest.mark.parametrize("soft_value", [-0.1, 1.5, float("nan")])
def test_other_factors_are_refused(soft_value):
    with (
        pytest.raises(ValueError, match="soft_value is"),
        softened([AWKWARD], FlatMask(HALF), soft_value),
    ):
        pass


def test_softened_is_in_place_and_restores_the_bits_whatever_happens():
    model = nn.Linear(6, 1, bias=True)
    with torch.no_grad():
        model.weight.copy_(AWKWARD)
        model.bias.fill_(-0.0)
    storage = model.weight.data_ptr()
    mask = FlatMask(torch.cat([HALF, torch.tensor([False])]))
    with pytest.raises(KeyboardInterrupt), softened(model.parameters(), mask, 0.5):
        assert model.weight.data_ptr() == storage
        assert bits(model.weight[0]) == bits(torch.where(HALF, 1.0, 0.5) * AWKWARD)
        with torch.no_grad():
            model.weight.fill_(9)
        raise KeyboardInterrupt
    assert bits(model.weight[0]) == bits(AWKWARD)
    assert bits(model.bias) == bits(torch.tensor([-0.0]))
    assert model.weight.data_ptr() == storage
    with softened(model.parameters(), None, 0.5):
        assert bits(model.weight[0]) == bits(AWKWARD)


class Headed(nn.Sequential):
    def get_classifier(self):
        return self[1]


def test_maskable_leaves_out_the_head_the_frozen_and_the_excluded():
    model = Headed(nn.Linear(2, 2), nn.Linear(2, 2), *(nn.LayerNorm(2) for _ in range(9)))
    assert "1.weight" not in maskable(model)
    assert "10.weight" in maskable(model)  # begins like the head's name, and is not inside it
    assert len(maskable(model)) == 20
    model[0].bias.requires_grad_(False)
    assert list(maskable(model))[:2] == ["0.weight", "2.weight"]
    assert next(iter(maskable(model, exclude=["0.weight", "1"]))) == "2.weight"
    assert "1.weight" in maskable(model, exclude=())
    assert list(maskable(nn.Linear(1, 1))) == ["weight", "bias"]


class Model(nn.Module):
    """A small network with a bare parameter, dropout, and a head named as timm names it."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(6))
        self.body = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(16))
        self.head = nn.Linear(16, 5)

    def get_classifier(self):
        return self.head

    def forward(self, images):
        return self.head(self.body(images + self.position))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model()


def trained(mask):
    flat = torch.cat([tensor.reshape(-1) for tensor in mask.values()])
    return set(flat.nonzero()[:, 0].tolist())


def make_batches(sizes=(10, 10, 10)):
    generator = torch.Generator().manual_seed(5)
    total = sum(sizes)
    images = torch.randn(total, 6, generator=generator)
    labels = torch.randint(0, 5, (total,), generator=generator)
    tensors = (images, labels, torch.arange(total) + 1000)
    return list(zip(*(tensor.split(list(sizes)) for tensor in tensors), strict=True))


def model_bits(model):
    return {name: bits(p) for name, p in model.named_parameters()}


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("rule", [r for r in MASK_RULES if not rule_named(r).against_others])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_calibration_is_exact_and_leaves_the_model_as_it_was(model, rule, scope, share):
    with torch.no_grad():
        model.body[0].bias.fill_(-0.0)
        model.body[0].weight[0, 0] = 1e-42
    before = model_bits(model)
    mask = calibrate_mask(
        model, make_batches(), rule=rule, sparsity=1 - share, num_rounds=3, scope=scope
    )
    size = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head"))
    assert sum(int(t.sum()) for t in mask.values()) == round(share * size)
    assert list(mask) == [n for n, _ in model.named_parameters() if not n.startswith("head")]
    assert model_bits(model) == before
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("rule", ["least-sensitive", "most-sensitive"])
def test_rounds_are_one_round_unless_dropped_weights_shrink(model, rule):
    def calibrate(num_rounds, soft_value):
        return trained(
            calibrate_mask(
                model,
                make_batches(),
                rule=rule,
                sparsity=0.9,
                num_rounds=num_rounds,
                soft_value=soft_value,
                labels="true",
            )
        )

    once = calibrate(1, 1.0)
    assert calibrate(2, 1.0) == calibrate(5, 1.0) == once
    assert calibrate(1, 0.1) == once  # nothing is dropped while round 1 is scored
    assert calibrate(4, 0.1) != once
    assert calibrate(4, 0.0) != calibrate(4, 0.1)


@pytest.mark.parametrize("rule", ["random", "lowest-magnitude", "highest-magnitude"])
def test_rounds_do_not_change_rules_without_scores_and_no_batch_is_read(model, rule):
    def unreadable():
        raise AssertionError("a batch was read")
        yield

    arguments = {"rule": rule, "sparsity": 0.9, "seed": 2}
    once = calibrate_mask(model, unreadable(), num_rounds=1, **arguments)
    assert trained(calibrate_mask(model, unreadable(), num_rounds=4, **arguments)) == trained(once)
    assert not needs_scores(rule)
    calibration = start(rule, maskable(model), sparsity=0.9, num_rounds=4, seed=2)
    calibration.advance()
    assert calibration.done


def test_summed_client_scores_give_the_centralised_mask(model):
    central = calibrate_mask(
        model, make_batches(), rule="least-sensitive", sparsity=0.9, num_rounds=4, seed=7
    )
    examples = make_batches([1] * 30)
    clients = [examples[:3], examples[3:4], examples[4:]]
    parameters = maskable(model)
    calibration = start("least-sensitive", parameters, sparsity=0.9, num_rounds=4)
    sizes, previous = [], None
    while not calibration.done:
        sums = calibration.rule.sums(calibration.layout.size)
        for client in clients:
            message = client_scores(
                model,
                calibration.layout,
                list(parameters.values()),
                client,
                calibration.rule,
                round=calibration.round + 1,
                mask=calibration.mask,
                soft_value=0.1,
                seed=7,
            )
            sums.add(message)
        mask = calibration.advance(sums.scores()).mask
        sizes.append(int(mask.sum()))
        assert previous is None or not (mask & ~previous).any()
        previous = mask
    total = sum(p.numel() for p in parameters.values())
    assert sizes == [round(0.1 ** (step / 4) * total) for step in range(1, 5)]
    assert torch.equal(mask, calibration.layout.flatten(central))


def test_labels_are_drawn_afresh_in_every_round_and_by_seed(model, monkeypatch):
    drawn = []

    def spy(model, totals, batches, **options):
        drawn.append(options["generator"].initial_seed())
        fisher_into(model, totals, batches, **options)

    monkeypatch.setattr(calibration_module, "fisher_into", spy)
    for seed in (0, 1, 0):
        arguments = {"rule": "least-sensitive", "sparsity": 0.5, "num_rounds": 3, "seed": seed}
        calibrate_mask(model, make_batches(), **arguments)
    assert len(set(drawn[:6])) == 6
    assert drawn[6:] == drawn[:3]


def test_batches_may_come_from_a_generator(model):
    arguments = {"rule": "least-sensitive", "sparsity": 0.9, "num_rounds": 3}
    once_only = calibrate_mask(model, iter(make_batches()), **arguments)
    assert trained(once_only) == trained(calibrate_mask(model, make_batches(), **arguments))


class ReadOnce:
    """A loader that is no iterator, and has examples for the first reading only."""

    def __init__(self):
        self.left = iter(make_batches())

    def __iter__(self):
        return self.left


@pytest.mark.parametrize("rule", ["least-sensitive", "most-sensitive", "agreement"])
@pytest.mark.parametrize(
    "make", [list, lambda: iter([]), ReadOnce, lambda: [(torch.zeros(0, 6), torch.zeros(0).long())]]
)
def test_a_mask_from_no_examples_is_refused(model, rule, make):
    batches, before = make(), model_bits(model)
    with pytest.raises(ValueError, match="batches holds no examples"):
        calibrate_mask(model, batches, rule=rule, sparsity=0.9, num_rounds=2)
    with pytest.raises(ValueError, match="batches holds no examples"):
        fisher_diagonal(model, batches)
    assert model_bits(model) == before


def test_client_scores_read_an_iterator_twice_where_the_rule_needs_that(model):
    found = []
    for batches in (make_batches(), iter(make_batches())):
        parameters = maskable(model)
        calibration = start("agreement", parameters, sparsity=0.9)
        message = client_scores(
            model, calibration.layout, list(parameters.values()), batches, calibration.rule,
            round=1, mask=None, soft_value=0.1, seed=0,
        )  # fmt: skip
        found.append(message)
    assert torch.equal(*found)


@pytest.mark.parametrize("num_rounds", [1, 3])
@pytest.mark.parametrize("rule", ["least-sensitive", "most-sensitive", "agreement"])
def test_scores_that_are_all_zero_are_no_evidence(model, rule, num_rounds):
    nn.init.zeros_(model.head.weight)
    with pytest.raises(ValueError, match="round 1 are zero for all 150 weights"):
        calibrate_mask(model, make_batches(), rule=rule, sparsity=0.9, num_rounds=num_rounds)


def test_scores_that_nobody_sent_are_no_evidence_in_any_round():
    calibration = start("least-sensitive", {"w": torch.rand(8)}, sparsity=0.75, num_rounds=2)
    calibration.advance(torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 1]))
    with pytest.raises(ValueError, match="round 2 are zero for all 8 weights"):
        calibration.advance(calibration.rule.sums(8).scores())
    calibration.advance(torch.tensor([1.0, 0, 1, 0, 0, 0, 1, 1]))  # some zeros are evidence
    assert calibration.mask.num_trained == 2


def test_agreement_of_one_client_is_least_sensitive(model):
    arguments = {"sparsity": 0.9, "num_rounds": 3}
    ours = calibrate_mask(model, make_batches(), rule="agreement", **arguments)
    least = calibrate_mask(model, make_batches(), rule="least-sensitive", **arguments)
    assert trained(ours) == trained(least)


def test_the_logit_score_is_an_option(model):
    arguments = {"rule": "least-sensitive", "sparsity": 0.9, "num_rounds": 1, "labels": "true"}
    default = calibrate_mask(model, make_batches(), **arguments)
    logit = calibrate_mask(model, make_batches(), output="logit", **arguments)
    expected = build_mask(
        maskable(model),
        rule="least-sensitive",
        sparsity=0.9,
        scores=fisher_diagonal(model, make_batches(), labels="true", output="logit"),
    )
    assert trained(logit) == trained(expected) != trained(default)


def test_an_error_while_scoring_restores_the_weights(model, monkeypatch):
    calls = []

    def failing(model, totals, batches, **options):
        calls.append(model_bits(model))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        fisher_into(model, totals, batches, **options)

    monkeypatch.setattr(calibration_module, "fisher_into", failing)
    before = model_bits(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        calibrate_mask(model, make_batches(), rule="least-sensitive", sparsity=0.9, num_rounds=2)
    assert calls[0] == before
    assert calls[1] != before
    assert model_bits(model) == before


def test_a_model_of_mixed_precision_keeps_its_bits(model):
    model.body.double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.forward = lambda x: model.head(model.body((x + model.position).double()).float())
    mask = calibrate_mask(model, make_batches(), rule="least-sensitive", sparsity=0.9, num_rounds=3)
    assert len(trained(mask)) == round(0.1 * (6 + 6 * 16 + 3 * 16))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == before[name].dtype
        assert torch.equal(parameter, before[name])


def test_impossible_calibrations_are_refused_with_a_sentence(model):
    one = {"w": torch.tensor([1.0, 2.0])}
    everything = FlatMask(torch.ones(2).bool())
    with pytest.raises(ValueError, match="num_rounds is 0"):
        calibrate_mask(model, [], rule="random", sparsity=0.5, num_rounds=0)
    with pytest.raises(ValueError, match=r"sparsity is 1\.5"):
        calibrate_mask(model, [], rule="least-sensitive", sparsity=1.5, num_rounds=4)
    with pytest.raises(ValueError, match="mask is missing after round 2"):
        start("random", one, sparsity=0.5, num_rounds=3, round=2)
    with pytest.raises(ValueError, match="mask is given after round 0"):
        start("random", one, sparsity=0.5, mask=everything)
    with pytest.raises(ValueError, match="scores is None"):
        start("least-sensitive", one, sparsity=0.5).advance()
