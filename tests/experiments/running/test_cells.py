"""What makes two cells the same: idle keys decide nothing, neither in name nor in fact."""

from pathlib import Path
from typing import Any

import pytest

from experiments.running.cells import identity
from experiments.running.launch import run_here
from experiments.running.scales import Scale
from fedta_app.centralized import run_centralized
from fedta_app.config import KEYS, RunConfig
from fedta_app.entry import Key, Value
from fedta_app.errors import ConfigError
from fedta_app.runs.directory import run_path
from fedta_app.runs.records import read_summary

TINY = {
    "num-clients": 5, "fraction-train": 0.4, "num-server-rounds": 2, "local-steps": 2,
    "eval-size": 9, "calibration-rounds": 1, "calibration-examples": 4, "head-fraction": 0.1,
}  # fmt: skip
MASKED = {"head": "ridge", "sparsity": 0.5, "partition": "iid"}
CASES: list[dict[str, Any]] = [
    {"engine": "centralized", "head": "ridge", "lr-schedule": "cosine"},
    {"engine": "in-process", "partition": "classes", "strategy": "ties"},
    {**MASKED, "engine": "in-process", "mask-rule": "random", "mask-scope": "global"},
    {**MASKED, "engine": "in-process", "mask-rule": "least-sensitive", "mask-scope": "union"},
]


def another(key: Key, value: Value) -> Value:
    """Return an allowed value of the key that is not this one."""
    candidates = (*key.options, 0.25, 0.75, 3, 5, not value, "cpu")
    for candidate in candidates:
        try:
            if (found := key.checked(candidate)) != value:
                return found
        except ConfigError:
            continue
    raise AssertionError(f"{key.name} has one allowed value")


def with_idle_keys_changed(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """Return the configuration with another value of every idle key that may have one."""
    changed = []
    for name, value in config.to_mapping().items():
        if KEYS[name].read_when.holds(config):
            continue
        try:
            config = config.with_values(**{name.replace("-", "_"): another(KEYS[name], value)})
        except ConfigError:
            continue  # score-threshold without a mask, say, is refused
        changed.append(name)
    return config, changed


@pytest.mark.parametrize("values", CASES, ids=["central", "ties", "random", "scored"])
def test_idle_keys_change_no_weight_and_no_identity(tmp_path: Path, values: dict[str, Any]) -> None:
    first = RunConfig.from_mapping(
        {**TINY, **values, "name": "first", "results-dir": str(tmp_path)}
    )
    second, changed = with_idle_keys_changed(first)
    assert len(changed) >= 5
    assert identity(second) == identity(first)
    found = set()
    for config in (first, second.with_values(name="second")):
        (run_centralized if config.engine == "centralized" else run_here)(config)
        found.add(read_summary(run_path(config))["final-weights-sha256"])
    assert len(found) == 1


def test_a_key_that_is_read_and_decides_the_result_changes_the_identity() -> None:
    for values in CASES:
        config = RunConfig.from_mapping({**TINY, **values})
        for key in KEYS.values():
            value = another(key, config.to_mapping()[key.name])
            try:
                other = config.with_values(**{key.name.replace("-", "_"): value})
            except ConfigError:
                continue
            decides = "result" in key.decides and key.read_when.holds(config)
            if key.name != "engine":
                assert (identity(other) != identity(config)) == decides, key.name


def test_a_scale_changes_what_is_counted_in_rounds_and_nothing_else() -> None:
    scale = Scale("half", "", "", 0.5, 2.0, {}, {})
    counted = {"num-server-rounds": 40, "lr-step-rounds": 10, "warmup-rounds": 4}
    others = {"local-steps": 4, "probe-rounds": 20, "calibration-rounds": 8, "checkpoint-every": 6}
    assert scale.apply({**counted, **others, "eval-every": 5}, {}) == {
        "num-server-rounds": 20, "lr-step-rounds": 5, "warmup-rounds": 2, **others, "eval-every": 5,
    }  # fmt: skip


def test_a_head_that_is_refreshed_is_so_once_at_every_scale() -> None:
    values = {"num-server-rounds": 40, "head-refresh": 4}
    assert Scale("half", "", "", 0.5, 1.0, {}, {}).apply(values, {})["head-refresh"] == 4
    few = Scale("few", "", "", 0.05, 1.0, {}, {}).apply(values, {})
    assert few == {"num-server-rounds": 2, "head-refresh": 2}
