"""What public implementations get wrong, each beside the paper's rule on the same quadratics."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.audit_algorithms import FAR, MOMENTA, OURS, THEIRS, distances, main
from benchmarks.harness.quadratics import Server, clients, optimum
from fedta_app.algorithms.fedprox import FedProx
from fedta_app.algorithms.scaffold import Scaffold

ROUNDS = 60


@cache
def distances_of(label: str, momentum: float, rounds: int) -> list[float]:
    """Return the distances after each round, which several tests look at."""
    return distances({**OURS, **THEIRS}[label](momentum), momentum, rounds)


def end(label: str, momentum: float) -> float:
    """Return the distance after the last round, `FAR` or more where the weights ran away."""
    return distances_of(label, momentum, ROUNDS)[-1]


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("label", ["SCAFFOLD", "FedDyn"])
def test_what_corrects_drift_comes_closer_in_every_stretch(label: str, momentum: float) -> None:
    found = distances_of(label, momentum, 4 * ROUNDS)
    lowest = [min(found[start : start + ROUNDS]) for start in range(0, 4 * ROUNDS, ROUNDS)]
    assert lowest == sorted(lowest, reverse=True)
    assert lowest[-1] < lowest[0] / 100
    averaged = distances_of("FedAvg", momentum, 4 * ROUNDS)
    assert found[-1] < averaged[-1] / 100
    assert averaged[-1] == pytest.approx(averaged[-ROUNDS], rel=0.05), "FedAvg has come to rest"


@pytest.mark.parametrize("momentum", MOMENTA)
def test_scaffold_with_the_sign_reversed_runs_away(momentum: float) -> None:
    assert not end("SCAFFOLD, sign reversed", momentum) < FAR


@pytest.mark.parametrize("momentum", MOMENTA)
def test_scaffold_without_the_clients_controls_does_not_beat_fedavg(momentum: float) -> None:
    label = "SCAFFOLD, controls never kept"
    found = distances_of(label, momentum, 4 * ROUNDS)
    assert found[-1] > 0.9 * distances_of("FedAvg", momentum, 4 * ROUNDS)[-1]


def test_scaffold_that_divides_by_the_steps_in_spite_of_momentum_runs_away() -> None:
    assert not end("SCAFFOLD, divided by steps", 0.9) < FAR
    same = distances(OURS["SCAFFOLD"](0.0), 0.0, ROUNDS)
    assert distances(THEIRS["SCAFFOLD, divided by steps"](0.0), 0.0, ROUNDS) == same


def test_a_norm_that_is_not_squared_pulls_with_a_constant_force() -> None:
    """It stays away further than FedAvg and FedProx, which agree here."""
    fedavg, fedprox = end("FedAvg", 0.0), end("FedProx", 0.0)
    assert fedprox == pytest.approx(fedavg, rel=0.1)
    assert end("FedProx, norm not squared", 0.0) > 1.5 * fedavg


@pytest.mark.parametrize("momentum", MOMENTA)
def test_feddyn_whose_penalty_has_no_gradient_does_not_arrive(momentum: float) -> None:
    label = "FedDyn, penalty without gradient"
    found = distances_of(label, momentum, 4 * ROUNDS)
    assert not found[-1] < distances_of("FedDyn", momentum, 4 * ROUNDS)[-1] * 100


def test_clients_of_scaffold_weigh_the_same_whatever_their_number_of_images() -> None:
    """Weights by images, as some implementations have them, reach another point."""
    those = clients(4, 3)
    found = Server(Scaffold(num_clients=4), those, torch.zeros(3).double(), lr=0.02)
    for _ in range(200):
        found.run_round(range(4))
    torch.testing.assert_close(found.weights, optimum(those), rtol=1e-8, atol=1e-8)
    assert len({client.num_examples for client in those}) == 4


def test_fedprox_adds_mu_times_the_distance_to_the_gradient() -> None:
    """One client, written out: neither the norm itself, nor twice its square."""
    (client,) = clients(1, 3)
    server = Server(FedProx(pull=0.7), [client], torch.zeros(3).double(), steps=5, lr=0.1)
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(5):
        loss = (client.curvature * (weights - client.optimum).square()).sum() / 2
        loss = loss + 0.7 / 2 * weights.square().sum()
        (gradient,) = torch.autograd.grad(loss, [weights])
        weights = (weights - 0.1 * gradient).detach().requires_grad_()
    server.run_round([0])
    torch.testing.assert_close(server.weights, weights.detach())


@pytest.mark.draws
def test_the_command_prints_every_curve_and_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.json"
    main(["--rounds", "5", "--json", str(out), "--figure", str(tmp_path / "audit.png")])
    curves = json.loads(out.read_text())["curves"]
    assert list(curves) == ["0", "0.9"]
    assert list(curves["0"]) == [*OURS, *THEIRS]
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(curves["0"])
    assert (tmp_path / "audit.png").read_bytes()[:4] == b"\x89PNG"
