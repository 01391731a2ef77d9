"""Short runs on a CUDA GPU, which is where tensors of two devices would meet; skipped without one.

What they compute is tested on the CPU. Each run is broken off after its first round of training and
resumed, because a checkpoint puts on the CPU what was on the GPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedta_app.runs.session import RunSession
from tests.server_app.masked import rows, run

DENSE: dict[str, Any] = {"mask-rule": "none", "strategy": "fedavg"}
OWN: dict[str, Any] = {"mask-scope": "client", "calibration-rounds": 1}
RUNS: dict[str, dict[str, Any]] = {
    "least sensitive": {},
    "contrast": {**OWN, "mask-rule": "contrast"},
    "own masks": OWN,
    "vote": {"mask-scope": "vote"},
    "of the server": {"mask-scope": "server"},
    "agreement": {"mask-rule": "agreement"},
    "fp16": {"precision": "fp16"},
    "blocks": {"trained-blocks": 1, "cached-views": 2, "augment": True},
    "probe": {"head": "probe", "probe-rounds": 1},
    "refreshed": {**DENSE, "head-refresh": 1, "head-refresh-clients": "all"},
    "ties": {"strategy": "ties"},
    "krum": {**DENSE, "strategy": "krum", "malicious-clients": 1, "fraction-train": 1.0},
    "q-ffl": {**DENSE, "strategy": "q-ffl", "fairness": 1.0},
    "fedlamb": {**DENSE, "strategy": "fedlamb"},
    "logit adjustment": {**DENSE, "strategy": "logit-adjustment"},
    "ditto": {**DENSE, "strategy": "ditto", "pull": 0.1},
    "per-fedavg": {**DENSE, "strategy": "per-fedavg", "personal-lr": 0.01},
    "personal layers": {**DENSE, "personal-layers": "norm"},
    "personal ridge": {**DENSE, "personal-ridge": 1.0},
    "chains": {**DENSE, "superclient-clients": 2},
    "bounded": {**DENSE, "update-bound": 0.05, "update-bound-kind": "fixed"},
    "secure": {**DENSE, "secure-aggregation": True, "fraction-train": 1.0},
    "interference": {"interference-every": 1},
}


class _Died(Exception):
    pass


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_gpu_resumes(
    name: str, tmp_path: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"device": str(cuda), **RUNS[name]}
    add = RunSession.add

    def die_after_a_round(self: RunSession, *arguments: Any) -> None:
        add(self, *arguments)
        if self.rows[-1].phase == "train":
            raise _Died

    with monkeypatch.context() as patch, pytest.raises(_Died):
        patch.setattr(RunSession, "add", die_after_a_round)
        run(tmp_path, **values)
    run(tmp_path, **values)
    trained = rows(tmp_path, "train")
    assert [row["round"] for row in trained] == ["1", "2"]
    assert all(row["clients_failed"] == "0" for row in trained)
