"""What every result says of itself, and how it is written."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from fedta_app.files import write_atomically
from fedta_app.runs.provenance import code_facts, device_name, versions

RESULTS = Path(__file__).resolve().parents[2] / "results" / "benchmarks"
# Options whose values are places on this machine, which mean nothing elsewhere.
_PLACES = ("--data-dir", "--json", "--out", "--pfl-python", "--prefix")


def facts() -> dict[str, Any]:
    """Return machine, versions, commit and command."""
    return {
        "device": device_name(torch.device("cpu")),
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "code": code_facts(),
        "command": command(),
    }


def processor() -> str:
    """Return the processor's name, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def command(arguments: list[str] | None = None) -> str:
    """Return the command that is running, places left out."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    kept = []
    while given:
        option = given.pop(0)
        name, equals, _ = option.partition("=")
        if name not in _PLACES:
            kept.append(option)
        elif not equals and given:
            given.pop(0)
    main = sys.modules["__main__"].__spec__
    module = main.name.removesuffix(".__main__") if main else "benchmarks"
    return shlex.join(["python", "-m", module, *kept])


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result as JSON, if a file was asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(result, indent=1) + "\n")
