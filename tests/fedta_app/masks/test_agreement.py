import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedta_app.masks import build_mask
from fedta_app.masks.rules.agreement import AgreementSums, mean_gradient


def client_values(num_clients, seed=0, shape=(200,)):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_clients, *shape, generator=generator) ** 8
    gradients = torch.randn(num_clients, *shape, generator=generator)
    return scores, gradients


def server_scores(scores, gradients):
    sums = AgreementSums(scores.shape[1])
    for message in torch.cat([scores, gradients], dim=1):
        sums.add(message)
    return sums.scores().float()


def mask_of(rule, scores):
    named = {"w": scores}
    return build_mask(named, rule=rule, sparsity=0.9, scores=named)["w"]


def test_by_hand():
    gradients = torch.tensor(
        [
            [2.0, 2.0, 2.0, 2.0],  # all agree: 4 clients
            [1.0, -1.0, 1.0, -1.0],  # they cancel: no better than one
            [3.0, 3.0, 0.0, 0.0],  # two agree, two have none
            [0.0, 0.0, 0.0, 0.0],  # nobody has any
            [1.0, 1.0, 1.0, -1.0],  # a majority of two: 4 / 4
            [1.0, 1.0, 1.0, 0.0],
        ]
    ).T
    scores = torch.full((4, 6), 3.0)
    expected = torch.tensor([3.0, 12.0, 6.0, 12.0, 12.0, 4.0])
    assert torch.equal(server_scores(scores, gradients), expected)


def test_one_client_is_exactly_least_sensitive():
    scores, gradients = client_values(1)
    gradients[0, 0] = 0.0
    gradients[0, 1] = 1e-30  # its square underflows in float32
    assert torch.equal(server_scores(scores, gradients), scores[0])


def test_equal_clients_train_the_least_sensitive():
    scores, gradients = client_values(1)
    equal = server_scores(scores.repeat(7, 1), gradients.repeat(7, 1))
    assert torch.equal(mask_of("agreement", equal), mask_of("least-sensitive", scores[0]))


def test_no_agreement_anywhere_is_least_sensitive():
    scores, gradients = client_values(6)
    gradients -= gradients.mean(0)
    mask = mask_of("agreement", server_scores(scores, gradients))
    assert torch.equal(mask, mask_of("least-sensitive", scores.sum(0)))


def test_of_equally_sensitive_weights_the_agreed_on_are_trained():
    _, gradients = client_values(8)
    gradients[:, ::10] = gradients[:, ::10].abs() + 1
    scores = server_scores(torch.ones_like(gradients), gradients)
    trained = mask_of("agreement", scores)
    assert trained[::10].all()
    assert int(trained.sum()) == 20


def test_invariant_to_the_order_of_clients_and_the_scale_of_gradients():
    scores, gradients = client_values(8)
    reference = server_scores(scores, gradients)
    torch.testing.assert_close(server_scores(scores.flip(0), gradients.flip(0)), reference)
    torch.testing.assert_close(server_scores(scores, 1000 * gradients), reference)
    total = scores.double().sum(0).float()
    assert (reference <= total).all()
    assert (reference >= total / 8).all()


def test_signs_do_in_place_of_gradients():
    scores, gradients = client_values(9)
    majority = gradients.sign().sum(0)
    expected = scores.sum(0) / (majority.square() / 9).clamp(min=1)
    torch.testing.assert_close(server_scores(scores, gradients.sign()), expected)


def test_the_mean_gradient_is_that_of_the_mean_loss():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        images, labels = torch.randn(7, 4), torch.randint(0, 3, (7,))
    batches = [(images[:5], labels[:5], torch.arange(5)), (images[5:], labels[5:])]
    found = mean_gradient(model, ["2.weight", "0.bias"], batches)
    cross_entropy(model(images), labels).backward()
    expected = torch.cat([model[2].weight.grad.flatten(), model[0].bias.grad])
    torch.testing.assert_close(found, expected)


def test_a_parameter_without_use_has_the_gradient_zero():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.layer = nn.Linear(2, 2), nn.Linear(3, 2)

        def forward(self, inputs):
            return self.layer(inputs)

    batches = [(torch.ones(4, 3), torch.tensor([0, 1, 0, 0]))]
    found = mean_gradient(Idle(), ["idle.weight", "layer.bias"], batches)
    assert not found[:4].any() and found[4:].any()
