"""The gradient noise scale against Gaussian gradients, whose noise scale is known."""

import math

import numpy as np
import pytest
import torch

from fedta_app.pace import NoiseScale


def gradients(
    clients: int, sizes: list[int], generator: torch.Generator, *, lr: float = 1.0
) -> list[torch.Tensor]:
    """Return mini-batch gradients of |G|^2 = 4 and S = 50 * 2 = 100, as updates at a rate."""
    mean = torch.zeros(50)
    mean[0] = 2.0
    noise = [torch.randn(50, generator=generator) * math.sqrt(2 / size) for size in sizes[:clients]]
    return [-lr * (mean + part) for part in noise]


@pytest.mark.parametrize("lr", [1.0, 0.01])
@pytest.mark.parametrize("sizes", [[8] * 10, [3, 8, 2, 8, 5, 8, 1, 8, 8, 4]])
def test_it_finds_a_known_noise_scale(lr: float, sizes: list[int]) -> None:
    """Over many rounds, whatever the learning rate, and with clients that have few images."""
    rule = NoiseScale(8, every=10**9, sizes=sizes)
    generator = torch.Generator().manual_seed(0)
    signal, noise = [], []
    for _ in range(800):
        for client, update in enumerate(gradients(10, sizes, generator, lr=lr)):
            rule.watch(client, update, None)
        before = rule.state_dict()
        rule.end_round(lr)
        after = rule.state_dict()
        signal.append(after["signal"] - 0.9 * before["signal"])
        noise.append(after["noise"] - 0.9 * before["noise"])
    assert 10 * np.mean(noise) == pytest.approx(100, rel=0.03)
    assert 10 * np.mean(signal) == pytest.approx(4, rel=0.1)


def test_a_rate_that_falls_changes_no_estimate() -> None:
    """As by a schedule: rounds of a high rate do not outweigh those of the rate of now."""
    found = []
    for late in (1.0, 0.1):
        rule = NoiseScale(8, every=10**9, sizes=[1000] * 10)
        generator = torch.Generator().manual_seed(0)
        for number in range(40):
            lr = late if number >= 20 else 1.0
            for client, update in enumerate(gradients(10, [8] * 10, generator, lr=lr)):
                rule.watch(client, update, None)
            rule.end_round(lr)
        found.append(rule.scale)
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_the_batch_becomes_the_noise_scale_within_its_bounds() -> None:
    generator = torch.Generator().manual_seed(1)
    found = {}
    for most in (0, 7):
        rule = NoiseScale(8, every=4, sizes=[1000] * 10, most=most)
        for number in range(1, 201):
            for client, update in enumerate(gradients(10, [rule.batch_size] * 10, generator)):
                rule.watch(client, update, None)
            before = rule.batch_size
            rule.end_round(1.0)
            assert number % 4 == 0 or rule.batch_size == before
        found[most] = rule.batch_size
    assert found[7] == 7
    assert found[0] == pytest.approx(25, rel=0.5)  # S / |G|^2, smoothed over some ten rounds


def test_where_no_gradient_is_left_the_batch_is_the_largest() -> None:
    rule = NoiseScale(8, every=1, sizes=[40, 60])
    rule.watch(0, torch.tensor([1.0, 0.0]), None)
    rule.watch(1, torch.tensor([-1.0, 0.0]), None)  # they cancel: the estimate of |G|^2 is negative
    rule.end_round(1.0)
    assert rule.batch_size == 60
    assert rule.scale == float("inf")


def test_a_round_of_one_client_changes_nothing() -> None:
    rule = NoiseScale(8, every=1, sizes=[40])
    rule.watch(0, torch.tensor([1.0, 0.0]), None)
    rule.end_round(1.0)
    assert rule.batch_size == 8


def test_a_round_that_is_repeated_counts_once_and_the_state_goes_on() -> None:
    plain, repeated = (NoiseScale(8, every=2, sizes=[1000] * 10) for _ in range(2))
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    for _ in range(6):
        for rule, generator in zip((plain, repeated), generators, strict=True):
            if rule is repeated:
                rule.watch(0, torch.full((50,), 1e6), None)
                rule.begin()
            updates = gradients(10, [rule.batch_size] * 10, generator)
            kept = [update.clone() for update in updates]
            for client, update in enumerate(updates):
                rule.watch(client, update, None)
            assert all(torch.equal(*pair) for pair in zip(updates, kept, strict=True))
            rule.end_round(1.0)
        fresh = NoiseScale(8, every=2, sizes=[1000] * 10)
        fresh.load_state_dict(repeated.state_dict())
        repeated = fresh
        assert repeated.state_dict() == plain.state_dict()
