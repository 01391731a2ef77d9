"""Flower's app as a folder of its own, and Flower's commands where pip put them."""

import shutil
import sys
from importlib.metadata import files, metadata
from pathlib import Path

import tomli_w

from experiments import INSTALLED, ROOT
from fedta_app.config import RunConfig
from fedta_app.runs.used_code import ROOMS


def write_app(folder: Path) -> Path:
    """Write the app as `flwr run` wants it, and return its folder.

    A wheel has the packages alone; here they get the pyproject.toml that they have in a checkout.
    A checkout is copied too: Flower looks at every file of the folder that it is given, and those
    of a virtual environment in it take longer than all of the app.
    """
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    text = _project() if INSTALLED else (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def _project() -> str:
    """Return a pyproject.toml from what pip has recorded."""
    app = {
        "publisher": "fedta",
        "fab-include": [f"{room}/**/*.py" for room in ROOMS],
        "components": {"serverapp": "server_app.app:app", "clientapp": "client_app.entry:app"},
        "config": RunConfig().to_mapping(),
    }
    about = metadata("fedta")
    project = {
        "name": about["Name"],
        "version": about["Version"],
        "description": about["Summary"],
        "license": about["License-Expression"],
    }
    return tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}})


def flower_scripts() -> Path:
    """Return the folder of Flower's commands, which is not always that of this Python.

    `pip install --user`, and pip on Debian and Colab, put commands elsewhere; the record of the
    installed package names them.
    """
    found = (Path(str(file.locate())) for file in files("flwr") or () if file.stem == "flwr")
    return next((path.resolve() for path in found if path.is_file()), Path(sys.executable)).parent
