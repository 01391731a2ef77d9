"""A run on the in-process engine, and what its directory says of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client_app.app import app as client_app
from engine.client_memory import forget_run
from engine.inprocess import run_in_process
from fedta_app.config import RunConfig
from server_app.app import app as server_app


def summary_of(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Run a configuration below a folder, as in a process of its own; return its summary."""
    forget_run()
    config = {"name": "test", **values, "results-dir": str(folder)}
    run_in_process(server_app, client_app, config, int(config["num-clients"]))
    return read_summary(folder, RunConfig.from_mapping(config))


def read_summary(folder: Path, config: RunConfig) -> dict[str, Any]:
    """Return summary.json of a run below a folder."""
    path = folder / config.name / f"seed{config.seed}/summary.json"
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary
