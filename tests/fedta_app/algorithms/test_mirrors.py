"""What the server keeps beside what the clients keep, in runs, from their files.

SCAFFOLD's server control is the mean of all clients' controls, and FedDyn's h that of their g_k.
The server derives both from updates alone, so whatever changes an update on its way parts them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from fedta_app.algorithms import REGISTRY, algorithms
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from tests.runs import summary_of

CLIENTS = 10
RUN = {
    "partition": "classes", "num-classes-per-client": 2, "num-clients": CLIENTS,
    "fraction-train": 0.3, "num-server-rounds": 5, "local-steps": 3, "lr": 0.02, "eval-every": 5,
    "eval-size": 20, "threads": 1, "engine": "in-process", "measure-test": "never",
}  # fmt: skip
KEPT = {"scaffold": "control", "feddyn": "gradient"}
SETTINGS: dict[str, dict[str, Any]] = {
    "dense": {"weights": "random"},
    "masked": {"head": "ridge", "mask-rule": "random", "sparsity": 0.7},
    "momentum, clipping": {"weights": "random", "momentum": 0.5, "clip-norm": 1.0},
    "wire": {"weights": "random", "transport": "wire"},
}


def test_all_that_are_mirrored_are_here() -> None:
    assert KEPT.keys() == {name for name in algorithms() if REGISTRY[name].mirrored}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("strategy", KEPT)
def test_the_server_keeps_the_mean_of_what_clients_keep(
    strategy: str, setting: str, tmp_path: Path
) -> None:
    values = {**RUN, **SETTINGS[setting], "strategy": strategy}
    assert summary_of(tmp_path, values)["status"] == "finished"
    folder, name = tmp_path / "test/seed0", KEPT[strategy]
    step = sorted((folder / "checkpoint").glob("step-*"))[-1]
    server = load_file(step / "weights.safetensors")[f"parts/algorithm/state/{name}"].double()
    state = json.loads((step / "state.json").read_text())["state"]["parts"]["algorithm"]
    mean = torch.zeros_like(server)
    for client, digest in state["memories"].items():
        mean += load((folder / "clients" / client / digest).read_bytes())[name] / CLIENTS
    assert len(state["memories"]) > CLIENTS / 2 and mean.norm() > 0
    assert float((server - mean).norm() / mean.norm()) < 1e-5


@pytest.mark.parametrize("strategy", KEPT)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"update-bound": 1.0}, "update-bound = 1 is not allowed with strategy"),
        (
            {"update-bound": 1.0, "update-bound-kind": "fixed", "dp-noise": 0.5, "dp-delta": 1e-3},
            "update-bound = 1 is not allowed with strategy",
        ),
        ({"secure-aggregation": True}, "secure-aggregation = true is not allowed with strategy"),
    ],
)
def test_what_changes_updates_on_their_way_is_refused(
    strategy: str, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_mapping({**RUN, "strategy": strategy, **change})
