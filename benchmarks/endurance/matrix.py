"""Every fault of a reply, in every phase, on every engine: it counts as that client's error.

    python -m benchmarks.endurance.matrix [--engines memory wire simulation] [--json FILE]

One run for each phase and engine. In that phase each fault has a client of its own, which answers
so whenever it is asked; half of the clients are honest. In a second run the same clients raise an
error there. Both have to finish all their rounds, with the same weights, and each fault but an
error that was raised has to be named in summary.json.

The engines are the one in this process with its two transports, and Flower's simulation, whose
clients are Ray actors. On machines of their own (SuperNodes) replies come by wire, and are read and
checked by the same code.
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from benchmarks.endurance.faults import FAULTS, RAISED, reason_against, spoil
from benchmarks.harness.processes import ROOT
from benchmarks.harness.report import facts, write
from client_app.app import app as honest_client
from engine.inprocess import run_in_process
from server_app.app import app as honest_server

HONEST = 14  # clients, beside one for each fault
BASE: dict[str, Any] = {
    "fraction-train": 1.0, "num-server-rounds": 2, "local-steps": 1, "eval-every": 2,
    "eval-size": 20, "calibration-rounds": 1, "calibration-examples": 4, "threads": 1,
    "head": "ridge", "missing-clients": "go-on", "cache-dir": "", "name": "matrix",
}  # fmt: skip
# The kind of message that is answered badly, and a run that has this phase.
PHASES: dict[str, tuple[str, dict[str, Any]]] = {
    "class counts": ("train.counts", {"strategy": "fedavg", "superclient-clients": 2}),
    "head": ("train.head", {"strategy": "fedavg"}),
    "probe": ("train.probe", {"strategy": "fedavg", "head": "probe", "probe-rounds": 2}),
    "calibration": ("train.calibrate", {"mask-rule": "least-sensitive"}),
    "votes for a mask": ("train.mask", {"mask-rule": "least-sensitive", "mask-scope": "vote"}),
    "masks of their own": (
        "train.mask", {"mask-rule": "least-sensitive", "mask-scope": "client"},
    ),
    "training": ("train", {"strategy": "scaffold"}),
}  # fmt: skip
# What runs each phase: the name of an engine, and the transport of its vectors.
ENGINES = {"memory": "in-process", "wire": "in-process", "simulation": "flower"}


class Clients(ClientApp):
    """Honest clients, and those of `faults` (by partition id), which answer one kind badly."""

    def __init__(self, kind: str, faults: Mapping[int, str], config: Mapping[str, Any]) -> None:
        super().__init__()
        self._kind, self._faults, self._config = kind, dict(faults), dict(config)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message, with the fault that this client has in its kind."""
        if not context.run_config:  # of Flower's simulation without an app, which checks it later
            context = copy.copy(context)
            context.run_config = self._config
        reply = honest_client(message, context)
        if message.metadata.message_type != self._kind:
            return reply
        settings = message.content.config_records["config"]
        fault = self._faults.get(int(settings["partition-id"]))  # type: ignore[arg-type]
        return spoil(reply, fault, str(settings["transport"])) if fault else reply


def play(clients: Clients, config: dict[str, Any], engine: str) -> None:
    """Run to the end; the run's directory says how that went."""
    if engine != "simulation":
        run_in_process(honest_server, clients, config, config["num-clients"])
        return
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        context.run_config = config
        while len(set(grid.get_node_ids())) < config["num-clients"]:  # they register meanwhile
            time.sleep(0.05)
        honest_server(grid=grid, context=context)

    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    log = logging.getLogger("flwr")
    before = log.level
    log.setLevel(logging.CRITICAL)  # errors are raised on purpose
    try:
        with patch.dict(os.environ, {"PYTHONPATH": path}):  # Ray's actors import this module
            run_simulation(
                server, clients, config["num-clients"],
                backend_config={
                    "init_args": {
                        "num_cpus": 2, "include_dashboard": False, "log_to_driver": False
                    },
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )  # fmt: skip
    finally:
        log.setLevel(before)


def run_of(phase: str, engine: str, faults: Mapping[int, str]) -> dict[str, Any]:
    """Run a phase with faults by partition id; return how the run ended, and who was rejected."""
    kind, values = PHASES[phase]
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        config = {
            **BASE, **values, "num-clients": HONEST + len(faults), "results-dir": folder,
            "engine": ENGINES[engine], "transport": "auto" if engine == "simulation" else engine,
        }  # fmt: skip
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                play(Clients(kind, faults, config), config, engine)
            except Exception as error:  # whatever ends the run is what became of these cells
                return {"end": {"status": f"{type(error).__name__}: {error}"}, "rejected": {}}
        summary = json.loads((Path(folder) / "matrix/seed0/summary.json").read_text())
    if "Traceback" in said.getvalue():
        return {"end": {"status": said.getvalue()}, "rejected": {}}
    return {
        "end": {key: summary[key] for key in ("status", "final-weights-sha256")},
        "rejected": {entry["client"]: entry["sent"] for entry in summary.get("rejected", [])},
    }


def cells_of(phase: str, engine: str, raised: dict[str, Any]) -> dict[str, str]:
    """Return what became of each fault of a phase on an engine: a reason, or "FAULT: ...".

    Parameters
    ----------
    raised : dict
        What `run_of` gave where all these clients raised an error.
    """
    faults = faults_of(phase)
    found = run_of(phase, engine, faults)
    cells = {fault: reason for fault in FAULTS if (reason := reason_against(fault, phase))}
    for client, fault in faults.items():
        why = found["rejected"].get(client)
        if found["end"] != raised["end"] or found["end"]["status"] != "finished":
            cells[fault] = f"FAULT: the run ended with {found['end']}, and not {raised['end']}"
        elif fault == RAISED:
            cells[fault] = "FAULT: it was rejected" if why else "failed"
        else:
            cells[fault] = f"rejected: {why}" if why else "FAULT: it was not rejected"
    return cells


def faults_of(phase: str) -> dict[int, str]:
    """Return the faults of a phase, each with a client of its own."""
    return dict(enumerate(fault for fault in FAULTS if not reason_against(fault, phase)))


def main(arguments: list[str] | None = None) -> int:
    """Run the matrix, print what it says, and return 1 if a cell is at fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    matrix: dict[str, dict[str, dict[str, str]]] = {engine: {} for engine in asked.engines}
    for phase in asked.phases:
        raised = run_of(phase, "memory", dict.fromkeys(faults_of(phase), RAISED))
        for engine in asked.engines:
            cells = matrix[engine][phase] = cells_of(phase, engine, raised)
            bad = {fault: said for fault, said in cells.items() if said.startswith("FAULT")}
            print(f"{phase}, {engine}: {len(cells)} cells, {len(bad)} at fault", flush=True)
            for fault, said in bad.items():
                print(f"  {fault}: {said}", flush=True)
    every = [
        said for phases in matrix.values() for cells in phases.values() for said in cells.values()
    ]
    at_fault = sum(said.startswith("FAULT") for said in every)
    ran = sum(said.startswith(("rejected", "failed")) for said in every)
    print(
        f"{len(every)} cells: {ran} as they should be, {len(every) - ran - at_fault} do not apply"
    )
    write(asked.json, {**facts(), "faults": at_fault, "cells": len(every), "matrix": matrix})
    return int(at_fault > 0)


if __name__ == "__main__":
    sys.exit(main())
