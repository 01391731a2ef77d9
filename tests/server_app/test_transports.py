"""The same final weights by every transport, for every strategy and phase that sends vectors."""

import functools
from typing import Any

import pytest

from engine import shared_memory
from engine.shared_memory import can_share
from tests.server_app.masked import rows, run

CASES: dict[str, dict[str, Any]] = {
    "dense fedavg": {"head": "random", "mask-rule": "none", "strategy": "fedavg"},
    "probe head": {"head": "probe", "probe-rounds": 2, "mask-rule": "none", "strategy": "fedavg"},
    "masked-fedavg": {},
    "own masks": {"mask-scope": "client", "coverage-exponent": 0.5},
    "union": {"mask-scope": "union"},
    "agreement": {"mask-rule": "agreement"},
    "ties": {"strategy": "ties", "mask-scope": "client"},
    "superclients": {"superclient-clients": 3, "strategy": "fedprox", "fraction-train": 1.0},
    "secure": {"secure-aggregation": True, "strategy": "fedavg"},
    "task-arithmetic": {"strategy": "task-arithmetic", "server-scale": 0.3},
}


QUICK = ["masked-fedavg", "own masks", "superclients"]
ALL = [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("case", ALL)
def test_memory_shared_memory_and_wire_give_the_same_bits(tmp_path, case):
    transports = ["memory", "wire", *(["shared"] if can_share() else [])]
    found = {
        transport: run(tmp_path / transport, transport=transport, **CASES[case])
        for transport in transports
    }
    assert {kind: summary["transport"] for kind, summary in found.items()} == {
        kind: kind for kind in transports
    }
    for key in ("final-weights-sha256", "bytes-up", "bytes-down"):
        assert len({summary[key] for summary in found.values()}) == 1


def test_a_client_that_reports_how_much_memory_it_took_keeps_its_control(tmp_path):
    """On Flower's engine, where clients have processes of their own; here its code runs in ours."""
    dense = {"head": "random", "mask-rule": "none", "strategy": "scaffold", "transport": "wire"}
    often = {**dense, "num-server-rounds": 3, "fraction-train": 0.6}
    here = run(tmp_path / "here", **often)
    there = run(tmp_path / "there", engine="flower", **often)
    assert there["final-weights-sha256"] == here["final-weights-sha256"]
    assert "client-memories-lost" not in there
    assert any(row["client_memory_mb"] for row in rows(tmp_path / "there", "train"))


@pytest.mark.skipif(not can_share(), reason="no anonymous files here")
def test_clients_that_do_not_share_memory_get_their_vectors_by_wire(tmp_path, monkeypatch):
    from client_app import app

    def unreachable(record, transport, name="vector", *, unpack=app.unpack):
        if transport == "fedta.shared":
            raise app.SharingError("another machine")
        return unpack(record, transport, name)

    monkeypatch.setattr(app, "unpack", functools.wraps(app.unpack)(unreachable))
    with pytest.raises(ValueError, match="transport = 'shared' is not allowed here"):
        run(tmp_path, transport="shared")
    monkeypatch.setattr("server_app.state.MEMORY", "fedta.wire")  # as on Flower's engine
    assert run(tmp_path, transport="auto")["transport"] == "wire"


@pytest.mark.skipif(not can_share(), reason="no anonymous files here")
def test_buffers_are_given_back_and_used_again_however_many_the_clients(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "_own", [])
    everyone = {"num-server-rounds": 4, "fraction-train": 1.0}
    run(tmp_path, transport="shared", **everyone, head="probe")
    assert len(shared_memory._own) <= 4  # one down, one up; the head and the scores are shorter
    assert not any(buffer.taken for buffer in shared_memory._own)
