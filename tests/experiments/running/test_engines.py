"""Flower's engine, by shared memory and by wire, ends at the weights of the in-process engine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
CASES: dict[str, dict[str, Any]] = {
    "demo/fedavg": {},
    "demo/masked": {},
    "own masks": {"mask-scope": "client", "strategy": "ties"},
    "agreement": {"mask-rule": "agreement", "strategy": "task-arithmetic", "server-scale": 0.1},
    "superclients": {"superclient-clients": 5, "mask-scope": "client"},
    "probe": {"head": "probe", "probe-rounds": 2, "calibration-rounds": 1},
}


def run(folder: Path, preset: str, engine: str, values: dict[str, Any]) -> dict[str, Any]:
    common = {"name": "cell", "num-server-rounds": 2, "eval-every": 2, "eval-size": 50}
    sets = [f"--set={key}={value}" for key, value in {**common, **values}.items()]
    subprocess.run(
        [sys.executable, "-m", "experiments", "run", preset, "--engine", engine,
         "--results-dir", str(folder), *sets],
        cwd=ROOT, check=True, timeout=280, capture_output=True,
    )  # fmt: skip
    summary: dict[str, Any] = json.loads((folder / "cell/seed0/summary.json").read_text())
    return summary


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_engines_and_transports_end_at_the_same_weights(tmp_path: Path, case: str) -> None:
    preset = case if "/" in case else "demo/masked"
    expected = run(tmp_path / "in-process", preset, "in-process", CASES[case])
    for transport in ("auto", "wire"):
        values = {**CASES[case], "transport": transport}
        found = run(tmp_path / transport, preset, "flower", values)
        for key in ("final-weights-sha256", "bytes-up", "bytes-down"):
            assert found[key] == expected[key], transport
