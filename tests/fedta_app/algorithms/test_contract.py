"""What every algorithm keeps, over the list of all of them, and a toy that is written here.

`Contract` takes any algorithm; a new one is held to it by one line, or by being in the registry.
"""

import copy
import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Error, Message
from safetensors.torch import load_file
from torch import Tensor

import client_app.app
import server_app.phases
from benchmarks.harness.quadratics import Server, clients, schedule
from engine.inprocess import InProcessGrid
from fedta_app.algorithms import (
    Algorithm,
    Correction,
    LocalRule,
    Total,
    Vectors,
    algorithms,
    make_algorithm,
)
from fedta_app.config import RunConfig
from fedta_app.runs.session import RunSession
from fedta_app.training.workspace import build_workspace
from fedta_app.vectors import FlatMask
from tests.runs import summary_of

SIZE, CLIENTS = 6, 5


@dataclass(frozen=True)
class Toy(Algorithm):
    """A pull to the start, and half of the last round's move again: ten lines, no other file."""

    name: ClassVar[str] = ""  # not registered: the tests hand it over as a value
    strength: float = 0.1

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        return LocalRule(correction=Correction(self.strength, start) if self.strength else None)

    def step(self, state: Vectors, total: Total, server_round: int):  # type: ignore[no-untyped-def]
        if self.strength and "last" in state:
            total.mean.add_(state["last"], alpha=0.5)
        return super().step(state, total, server_round)[0], {"last": total.mean.clone()}


# For each algorithm that has one, the parameters at which it is FedAvg.
NEUTRAL: dict[str, dict[str, float]] = {
    "fedavg": {},
    "masked-fedavg": {},
    "fedprox": {"pull": 0.0},
    "logit-adjustment": {"prior_strength": 0.0},
    "q-ffl": {"fairness": 0.0},
    "ditto": {"pull": 0.3},  # at any: what a client keeps for itself moves no global weight
    "per-fedavg": {"personal_lr": 0.0},
    "fednova": {},  # all clients take the same number of steps
    "fedavgm": {"server_momentum": 0.0, "server_lr": 1.0},
    "slowmo": {"server_momentum": 0.0, "server_lr": 1.0},
    "fedlars": {"server_trust": 0.0, "server_momentum": 0.0, "server_lr": 1.0},
}
RUN = {
    "name": "test", "partition": "classes", "num-clients": 12, "num-classes-per-client": 2,
    "fraction-train": 0.25, "num-server-rounds": 3, "local-steps": 2, "batch-size": 4, "lr": 0.02,
    "momentum": 0.5, "weight-decay": 0.01, "eval-every": 3, "eval-size": 20, "threads": 1,
    "engine": "in-process", "measure-test": "never",
}  # fmt: skip
MASKED = {"head": "ridge", "mask-rule": "random", "sparsity": 0.7}
SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"weights": "random"},
    "masked": MASKED,
    "own masks": {**MASKED, "mask-scope": "client"},
}


def every_algorithm() -> list[Any]:
    values = {"num_clients": RUN["num-clients"], "momentum": RUN["momentum"], "local_steps": 2}
    found = [pytest.param(make_algorithm(name, values), id=name) for name in algorithms()]
    return [*found, pytest.param(Toy(), id="toy")]


# They share their code with an algorithm that is run in every setting: only slow tests run them.
ALIKE = {
    "bulyan", "fedadagrad", "feddyn", "fedlars", "fedmedian", "fednova", "fedtrimmedavg", "fedyogi",
    "krum", "masked-fedavg", "multikrum", "q-ffl", "slowmo", "task-arithmetic",
}  # fmt: skip


BUSY = {"scaffold", "fedadam"}  # the most state on clients, and on the server


def in_every_setting() -> list[Any]:
    found = []
    for setting in SETTINGS:
        for algorithm in every_algorithm():
            if setting == "own masks" and not algorithm.values[0].own_masks:
                continue
            slow = algorithm.id in ALIKE or (setting != "dense" and algorithm.id not in BUSY)
            marks = [pytest.mark.slow] if slow else []
            name = f"{algorithm.id}-{setting}"
            found.append(pytest.param(*algorithm.values, setting, id=name, marks=marks))
    return found


# --- on quadratics: the functions alone


def fresh(algorithm: Algorithm) -> Server:
    """Return a server whose clients have unequal sizes, in the algorithm's own numbers."""
    known = {"num_clients": CLIENTS, "momentum": 0.5, "local_steps": 4}
    fitting = {key: value for key, value in known.items() if hasattr(algorithm, key)}
    start = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    return Server(
        replace(algorithm, **fitting), clients(CLIENTS, SIZE), start, momentum=0.5, lr=0.02
    )


def rounds(found: Server, chosen: Iterable[Iterable[int]]) -> Tensor:
    for those in chosen:
        found.run_round(those)
    return found.weights


@pytest.mark.parametrize("algorithm", every_algorithm())
class TestOnQuadratics:
    def test_functions_are_pure(self, algorithm: Algorithm) -> None:
        """The same state and replies give the same bits again, and the state is left alone."""
        found = fresh(algorithm)
        rounds(found, schedule(2, CLIENTS, 3))
        before = copy.deepcopy(found.state)
        again = copy.deepcopy(found)
        found.run_round([0, 2])
        again.run_round([0, 2])
        assert torch.equal(found.weights, again.weights)
        untouched = fresh(algorithm)
        untouched.state, kept = before, copy.deepcopy(before)
        untouched.round = 2
        untouched.run_round([1])
        assert before is not None and kept is not None
        assert all(torch.equal(before[name], kept[name]) for name in kept)

    def test_only_the_proportions_of_client_sizes_matter(self, algorithm: Algorithm) -> None:
        found, scaled = fresh(algorithm), fresh(algorithm)
        for client in scaled.clients:
            client.num_examples *= 7
        plan = schedule(4, CLIENTS, 3)
        torch.testing.assert_close(rounds(found, plan), rounds(scaled, plan))

    def test_an_entry_outside_all_own_masks_keeps_its_bits(self, algorithm: Algorithm) -> None:
        if not algorithm.own_masks:
            pytest.skip("the configuration refuses it")
        found = fresh(algorithm)
        generator = torch.Generator().manual_seed(2)
        for client in found.clients:
            client.mask = torch.rand(SIZE, generator=generator) < 0.6
            client.mask[3] = False
        found.weights[3] = -0.0
        rounds(found, schedule(5, CLIENTS, 3))
        assert torch.signbit(found.weights[3]) and found.weights[3] == 0
        assert found.weights.isfinite().all()

    def test_a_lost_reply_changes_neither_the_others_nor_that_clients_memory(
        self, algorithm: Algorithm
    ) -> None:
        found, without = fresh(algorithm), fresh(algorithm)
        for each in (found, without):
            each.run_round([0, 1, 2])
        found.run_round([0, 1, 4], failing=[4])
        without.run_round([0, 1])
        assert torch.equal(found.weights, without.weights)
        assert found.clients[4].memory == {}
        assert rounds(found, schedule(3, CLIENTS, 3)).isfinite().all()

    def test_zero_gradients_move_nothing(self, algorithm: Algorithm) -> None:
        found = fresh(algorithm)
        before = found.weights.clone()
        for client in found.clients:
            client.curvature = torch.zeros(SIZE, dtype=torch.float64)
        rounds(found, schedule(4, CLIENTS, 3))
        assert torch.equal(found.weights, before)


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_parameter_is_fedavg_bit_for_bit(name: str) -> None:
    plan = schedule(5, CLIENTS, 3)
    plain = rounds(fresh(Algorithm()), plan)
    assert torch.equal(rounds(fresh(make_algorithm(name, NEUTRAL[name])), plan), plain)


# --- in this process: model, masks, messages, checkpoints


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes every process's algorithm the given one."""

    def replace_algorithm(algorithm: Algorithm) -> None:
        for module in (client_app.app, server_app.phases):
            monkeypatch.setattr(module, "make_algorithm", lambda name, options: algorithm)

    return replace_algorithm


def run(folder: Path, **values: Any) -> dict[str, Any]:
    return summary_of(folder, {**RUN, **values})


@pytest.mark.parametrize(("algorithm", "setting"), in_every_setting())
class TestInARun:
    def test_it_resumes_after_every_round_to_the_same_bits(
        self, algorithm: Algorithm, setting: str, tmp_path: Path, use: Any
    ) -> None:
        """Frozen weights keep theirs, blobs that nobody names are gone, and nothing fails."""
        use(algorithm)
        _check_resuming(tmp_path, SETTINGS[setting])

    def test_the_order_of_arrival_and_a_client_that_fails(
        self,
        algorithm: Algorithm,
        setting: str,
        tmp_path: Path,
        use: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Replies that come last first change no bit; a client that fails ends no round."""
        use(algorithm)
        values = SETTINGS[setting]
        straight = run(tmp_path / "straight", **values)
        answer = InProcessGrid.send_and_receive

        def reversed_order(self: InProcessGrid, messages: Any, **_: Any) -> Iterator[Message]:
            # Copies: in this process a client's vectors hold until the next one trains.
            yield from [copy.deepcopy(reply) for reply in answer(self, messages)][::-1]

        monkeypatch.setattr(InProcessGrid, "send_and_receive", reversed_order)
        backwards = run(tmp_path / "backwards", **values)
        assert backwards["final-weights-sha256"] == straight["final-weights-sha256"]

        def one_fails(self: InProcessGrid, messages: Any, **_: Any) -> Iterator[Message]:
            for reply in answer(self, messages):
                failing = reply.metadata.message_type == "train" and not one_fails.done  # type: ignore[attr-defined]
                if failing:
                    one_fails.done = True  # type: ignore[attr-defined]
                    broken = Message(Error(code=0, reason="a full disk"), reply_to=_question(reply))
                    broken.metadata.__dict__["_reply_to_message_id"] = (
                        reply.metadata.reply_to_message_id
                    )
                    yield broken
                else:
                    yield reply

        one_fails.done = False  # type: ignore[attr-defined]
        monkeypatch.setattr(InProcessGrid, "send_and_receive", one_fails)
        failed = run(tmp_path / "failed", **values)
        assert failed["status"] == "finished"
        with (tmp_path / "failed/test/seed0/metrics.csv").open() as stream:
            assert sum(int(row["clients_failed"]) for row in csv.DictReader(stream)) == 1


@pytest.mark.parametrize(
    ("name", "setting"), [("toy", "dense"), ("scaffold", "masked"), ("fedadam", "own masks")]
)
def test_it_resumes_on_a_gpu_too(
    name: str, setting: str, cuda: torch.device, tmp_path: Path, use: Any
) -> None:
    """A checkpoint puts what the server keeps on the CPU."""
    use(next(found.values[0] for found in every_algorithm() if found.id == name))
    _check_resuming(tmp_path, {**SETTINGS[setting], "device": str(cuda)})


def _check_resuming(tmp_path: Path, values: dict[str, Any]) -> None:
    """Compare a run that ends after every round, and goes on, with one that does not."""
    unbroken = run(tmp_path / "unbroken", **values)
    assert unbroken["status"] == "finished"
    assert unbroken["final"]["clients_failed"] == 0
    parts = tmp_path / "parts"
    sessions = 0
    while (summary := _die_after_a_round(parts, values)) is None:
        sessions += 1
    assert sessions == len(rows_of(tmp_path / "unbroken"))
    assert summary["final-weights-sha256"] == unbroken["final-weights-sha256"]
    assert summary["bytes-up"] == unbroken["bytes-up"]
    assert summary["bytes-down"] == unbroken["bytes-down"]
    _check_frozen(tmp_path / "unbroken", values, unbroken)
    _check_memories(parts)
    assert _memories(parts)[-1] == _memories(tmp_path / "unbroken")[-1]  # by their sha256


def _check_frozen(folder: Path, values: dict[str, Any], summary: dict[str, Any]) -> None:
    if "mask" not in summary:
        return
    config = RunConfig.from_mapping({**RUN, **values, "results-dir": str(folder)})
    start = build_workspace(config).weights.vector.cpu()
    bits = (folder / "test/seed0/blobs" / summary["mask"]["sha256"]).read_bytes()
    mask = FlatMask.from_bits(bits, start.numel(), torch.device("cpu")).mask
    step = sorted((folder / "test/seed0/checkpoint").glob("step-*"))[-1]
    end = load_file(step / "weights.safetensors")["parts/server/weights"]
    assert torch.equal(start.view(torch.int32)[~mask], end.view(torch.int32)[~mask])
    assert not torch.equal(start, end)


def _check_memories(folder: Path) -> None:
    named: dict[str, set[str]] = {}
    for memories in _memories(folder):
        for client, digest in memories.items():
            named.setdefault(client, set()).add(digest)
    there = {
        path.name: {blob.name for blob in path.iterdir()}
        for path in (folder / "test/seed0/clients").glob("*")
    }
    assert {client: blobs for client, blobs in there.items() if blobs} == named


def _memories(folder: Path) -> list[dict[str, str]]:
    """Return the digests of the clients' memories that each checkpoint names, oldest first."""
    paths = sorted((folder / "test/seed0/checkpoint").glob("step-*/state.json"))
    states = [json.loads(path.read_text())["state"] for path in paths]
    return [state["parts"]["algorithm"]["memories"] for state in states]


def _question(reply: Message) -> Message:
    """Return something that an error can answer."""
    question = copy.copy(reply)
    question.metadata.__dict__["_dst_node_id"] = reply.metadata.src_node_id
    return question


class _Died(Exception):
    pass


def _die_after_a_round(folder: Path, values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the summary of a run that has no round left; else do one, and end without a word."""
    add = RunSession.add

    def add_and_die(self: RunSession, *arguments: Any) -> None:
        add(self, *arguments)
        raise _Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunSession, "add", add_and_die)
        try:
            return run(folder, **values)
        except _Died:
            return None


def rows_of(folder: Path) -> list[str]:
    return (folder / "test/seed0/metrics.csv").read_text().splitlines()[1:]


@pytest.fixture(scope="module")
def fedavg_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of FedAvg's final weights in each setting."""
    return {
        setting: run(tmp_path_factory.mktemp("plain"), **SETTINGS[setting])["final-weights-sha256"]
        for setting in ("dense", "masked")
    }


@pytest.mark.parametrize("setting", ["dense", "masked"])
@pytest.mark.parametrize("name", [name for name in NEUTRAL if name != "fedavg"])
def test_a_neutral_parameter_is_fedavg_in_a_run(
    name: str, setting: str, tmp_path: Path, use: Any, fedavg_weights: dict[str, str]
) -> None:
    use(make_algorithm(name, NEUTRAL[name]))
    neutral = run(tmp_path, **SETTINGS[setting])
    assert neutral["final-weights-sha256"] == fedavg_weights[setting]
