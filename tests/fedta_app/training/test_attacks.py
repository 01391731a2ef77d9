"""Hostile clients, and the bound on the length of updates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedta_app.algorithms.base import MeanOfReplies, Reply
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from fedta_app.finished.reading import Run
from fedta_app.heads import RidgeStatistics
from fedta_app.keys.algorithm import ON_UPDATES
from fedta_app.training.attacks import attack_, attackers, poisoned_scores, poisoned_sums
from strategies.bounding import BoundedUpdates
from tests.runs import summary_of

RUN = {
    "name": "test", "partition": "dirichlet", "num-clients": 20, "fraction-train": 0.5,
    "num-server-rounds": 4, "local-steps": 2, "lr": 0.01, "head": "ridge", "eval-every": 4,
    "threads": 1, "engine": "in-process", "measure-test": "never",
}  # fmt: skip


def run(folder: Path, **values: Any) -> dict[str, Any]:
    summary = summary_of(folder, {**RUN, **values})
    assert summary["status"] == "finished"
    return summary


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of the run in which nobody is hostile."""
    return run(tmp_path_factory.mktemp("clean"))


def test_the_hostile_clients_are_drawn_once_by_the_seed() -> None:
    found = attackers(3, 100, 0.1)
    assert len(found) == 10 and found == attackers(3, 100, 0.1) and found != attackers(4, 100, 0.1)
    assert max(found) < 100
    assert not attackers(0, 100, 0.0) and not attackers(0, 4, 0.1)


def test_what_they_send() -> None:
    update = torch.tensor([1.0, -2.0, 0.0])
    expected = {
        "sign-flip": [-1.0, 2.0, 0.0],
        "scale": [10.0, -20.0, 0.0],
        "reverse": [-100.0, 200.0, 0.0],
        "same-value": [0.5, 0.5, 0.5],
    }
    assert set(expected) == set(ON_UPDATES)
    for attack, sent in expected.items():
        assert attack_(update.clone(), attack, step_length=0.5).tolist() == sent


def test_poisoned_sums_are_those_of_images_that_could_be() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels = torch.arange(20) % 4

    def sums(factor: float = 1.0, shift: int = 0) -> torch.Tensor:
        return RidgeStatistics(3, 4).add(factor * features, (labels + shift) % 4).to_vector()

    def poisoned(attack: str) -> torch.Tensor:
        return poisoned_sums(RidgeStatistics(3, 4).add(features, labels), attack).to_vector()

    torch.testing.assert_close(poisoned("head-labels"), sums(shift=1))
    torch.testing.assert_close(poisoned("head-scale"), sums(factor=100.0))


def test_poisoned_scores_rank_the_other_way() -> None:
    scores = torch.tensor([3.0, 0.0, 1.0])
    assert poisoned_scores(scores).argsort().tolist() == scores.argsort(descending=True).tolist()


def test_features_that_are_too_long_are_rejected_and_the_run_goes_on(
    tmp_path: Path, clean: dict[str, Any]
) -> None:
    hostile = {"attackers": 0.1, "attack": "head-scale"}
    with pytest.raises(RunError, match=r"client \d+ sent features whose lengths have"):
        run(tmp_path / "refuse", **hostile)
    summary = run(tmp_path / "go-on", **hostile, **{"missing-clients": "go-on"})
    hostile_clients = {str(client) for client in attackers(0, 20, 0.1)}
    assert set(summary["missing-clients"]["head"]) == hostile_clients
    assert summary["final"]["val_accuracy"] > clean["final"]["val_accuracy"] - 0.03


def test_votes_withstand_poisoned_scores_that_a_sum_does_not(tmp_path: Path) -> None:
    """The mask of the votes is nearly the same, and that of the sum is another."""
    masked = {
        "mask-rule": "least-sensitive", "calibration-rounds": 1, "sparsity": 0.8,
        "calibration-examples": 16, "num-server-rounds": 1, "fraction-train": 0.1,
    }  # fmt: skip
    densities = {}
    for scope in ("global", "vote"):
        masks = []
        for name, hostile in (("clean", {}), ("hostile", {"attackers": 0.1, "attack": "scores"})):
            folder = tmp_path / scope / name
            run(folder, **masked, **hostile, **{"mask-scope": scope})
            found = Run(folder / "test/seed0").flat_mask
            assert found is not None
            masks.append(found.mask)
        both = (masks[0] & masks[1]).sum() / masks[0].sum()
        densities[scope] = float(both)
    assert densities["global"] < 0.3 and densities["vote"] > 0.9, densities


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"attack": "head-labels", "head": "random"}, "with head = 'random': it is on the sums"),
        (
            {"attack": "head-scale", "head": "ridge", "personal-ridge": 1.0},
            "with personal-ridge = 1.0: its heads are made from images",
        ),
        (
            {"attack": "head-labels", "head": "ridge", "interference-every": 2},
            "with interference-every = 2: it compares the head with one made from images",
        ),
        ({"attack": "scores"}, "with mask-rule = 'none': it is on scores"),
        (
            {"attack": "scores", "mask-rule": "agreement"},
            "with mask-rule = 'agreement': it is on scores",
        ),
        (
            {"attack": "scores", "mask-rule": "least-sensitive", "mask-scope": "server"},
            "with mask-scope = 'server': it is on clients' scores",
        ),
    ],
)
def test_an_attack_on_a_phase_that_is_not_there_is_refused(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"attack = '{values['attack']}' is not allowed {said}"):
        RunConfig.from_mapping({**RUN, "attackers": 0.1, **values})


def reply(update: torch.Tensor, examples: int = 1) -> Reply:
    return Reply(update, examples, steps=1, lr=0.1)


class TestBound:
    @given(st.integers(0, 10**6), st.floats(0.1, 3.0), st.booleans())
    def test_it_is_the_mean_of_shortened_updates(
        self, seed: int, bound: float, by_median: bool
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.tensor([0.0, 1.0, 2.0, 30.0, 1e6])
        updates = lengths[:, None] * torch.randn(5, 7, generator=generator)
        bounded = BoundedUpdates(MeanOfReplies(), bound, by_median=by_median)
        for number, update in enumerate(updates):
            bounded.add(reply(update, number + 1))
        norms = updates.double().norm(dim=1)
        limit = bound * float(norms.sort().values[2]) if by_median else bound
        factors = torch.where(norms > limit, limit / norms, 1.0)
        weights = torch.arange(1, 6).double()
        naive = (updates.double() * (factors * weights)[:, None]).sum(0) / weights.sum()
        torch.testing.assert_close(bounded.result().mean.double(), naive, rtol=1e-5, atol=1e-6)

    def test_what_is_short_keeps_its_bits(self) -> None:
        update = torch.tensor([0.1, 0.2])
        plain, bounded = MeanOfReplies(), BoundedUpdates(MeanOfReplies(), 1.0, by_median=False)
        for mean in (plain, bounded):
            mean.add(reply(update))
        assert torch.equal(plain.result().mean, bounded.result().mean)

    def test_updates_that_are_kept_may_be_overwritten_by_the_next_client(self) -> None:
        buffer = torch.ones(3)
        bounded = BoundedUpdates(MeanOfReplies(), 2.0, by_median=True)
        bounded.add(reply(buffer))
        bounded.add(reply(buffer.mul_(3)))
        assert bounded.result().mean.tolist() == [2.0] * 3


def test_a_bound_that_nobody_exceeds_changes_no_bit(tmp_path: Path, clean: dict[str, Any]) -> None:
    for kind, bound in (("fixed", 1e6), ("median", 1e6)):
        values = {"update-bound": bound, "update-bound-kind": kind}
        bounded = run(tmp_path / kind, **values)
        assert bounded["final-weights-sha256"] == clean["final-weights-sha256"]


@pytest.mark.parametrize(
    "defence",
    [{"update-bound": 1.0}, pytest.param({"strategy": "fedmedian"}, marks=pytest.mark.slow)],
)
def test_a_defence_withstands_what_breaks_the_mean(
    tmp_path: Path, defence: dict[str, Any], clean: dict[str, Any]
) -> None:
    hostile = {"attackers": 0.2, "attack": "reverse"}
    broken = run(tmp_path / "broken", **hostile)["final"]["val_accuracy"]
    defended = run(tmp_path / "defended", **hostile, **defence)["final"]["val_accuracy"]
    assert broken < 0.5 < clean["final"]["val_accuracy"] - 0.05 < defended


def test_who_is_hostile_is_the_same_in_every_round_and_engine_setting(
    tmp_path: Path, clean: dict[str, Any]
) -> None:
    hostile = {"attackers": 0.2, "attack": "sign-flip"}
    first, again = run(tmp_path / "a", **hostile), run(tmp_path / "b", **hostile, transport="wire")
    assert first["final-weights-sha256"] == again["final-weights-sha256"]
    assert first["final-weights-sha256"] != clean["final-weights-sha256"]


@pytest.mark.parametrize(("share", "number"), [(0.1, 4), (0.1, 5), (0.4, 1)])
def test_a_share_that_is_no_client_is_refused(share: float, number: int) -> None:
    """The run would be called attacked, and be honest: every defence would withstand."""
    hostile = {"attackers": share, "attack": "scale", "fraction-train": 1.0}
    said = f"attackers = {share} is not allowed with num-clients = {number}: of these it is none"
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_mapping({**hostile, "num-clients": number})
    RunConfig.from_mapping({**hostile, "num-clients": 0})  # not known yet


def test_a_share_of_half_or_more_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attackers = 0.5 is not allowed"):
        RunConfig.from_mapping({**RUN, "attackers": 0.5})
