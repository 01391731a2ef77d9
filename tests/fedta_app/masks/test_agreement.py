import pytest
import torch

from fedta_app.masks.agreement import agreement_scores
from fedta_app.masks.building import build_mask


def client_values(num_clients, seed=0, shape=(40, 5)):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_clients, *shape, generator=generator) ** 8
    gradients = torch.randn(num_clients, *shape, generator=generator)
    return scores, gradients


def server_scores(scores, gradients):
    sums = (scores.sum(0), gradients.sum(0), gradients.square().sum(0))
    return agreement_scores(*({"w": total} for total in sums), len(scores))["w"]


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
    gradients[0, 0] = 1e-30  # its square underflows to zero
    assert torch.equal(server_scores(scores, gradients), scores[0])


def test_equal_clients_train_the_least_sensitive():
    scores, gradients = client_values(1)
    equal = server_scores(scores.repeat(7, 1, 1), gradients.repeat(7, 1, 1))
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
    assert (reference <= scores.sum(0)).all()
    assert (reference >= scores.sum(0) / 8).all()


def test_signs_do_in_place_of_gradients():
    scores, gradients = client_values(9)
    majority = gradients.sign().sum(0)
    expected = scores.sum(0) / (majority.square() / 9).clamp(min=1)
    torch.testing.assert_close(server_scores(scores, gradients.sign()), expected)


def test_bad_input_is_refused_with_a_sentence():
    one = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match="num_clients is 0"):
        agreement_scores(one, one, one, 0)
    with pytest.raises(ValueError, match="gradient_sum has no entry for parameter 'w'"):
        agreement_scores(one, {}, one, 1)
    with pytest.raises(ValueError, match=r"gradient_square_sum\['w'\] has shape"):
        agreement_scores(one, one, {"w": torch.ones(3)}, 1)
