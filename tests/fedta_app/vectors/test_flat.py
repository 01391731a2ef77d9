import torch
from torch import nn

from fedta_app.vectors import FlatWeights, weights_sha256


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_moving_the_weights_changes_no_bit_and_no_output() -> None:
    model, untouched = small(), small()
    names = [name for name, _ in model.named_parameters()]
    weights = FlatWeights(model, names)
    inputs = torch.randn(5, 3)
    assert torch.equal(model(inputs), untouched(inputs))
    expected = torch.cat([p.detach().flatten() for p in untouched.parameters()])
    assert torch.equal(weights.vector, expected)


def test_vector_and_parameters_share_memory_through_training() -> None:
    model = small()
    weights = FlatWeights(model, [name for name, _ in model.named_parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = weights.vector.clone()
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(weights.vector, before)
    weights.load(before)
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), before)


def test_a_choice_of_parameters_leaves_the_others_out() -> None:
    model = small()
    head = model[2].weight.detach().clone()
    weights = FlatWeights(model, ["0.weight", "1.bias"])
    weights.load(torch.zeros_like(weights.vector))
    assert not model[0].weight.any()
    assert torch.equal(model[2].weight, head)
    assert {k: v.shape for k, v in weights.views(weights.vector).items()} == {
        "0.weight": (4, 3),
        "1.bias": (4,),
    }


def test_fingerprint_follows_names_and_shapes() -> None:
    def fingerprint(*names: str) -> str:
        return FlatWeights(small(), list(names)).fingerprint

    assert fingerprint("0.weight", "0.bias") == fingerprint("0.weight", "0.bias")
    assert fingerprint("0.weight", "0.bias") != fingerprint("0.bias", "0.weight")
    assert fingerprint("2.weight") != fingerprint("0.weight")


def test_sha256_sees_every_bit() -> None:
    assert weights_sha256(torch.tensor([0.0])) != weights_sha256(torch.tensor([-0.0]))
