"""What produced a result: code, versions of packages, device."""

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fedta_app.config import RunConfig
from fedta_app.files import editable_checkout
from fedta_app.runs.used_code import ROOMS, Sources, read_sources, sources_sha256, used_parts

CHECKOUT_VARIABLE = "FEDTA_CHECKOUT"  # where Flower's copy of the app was made from
_PACKAGES = ("fedta", "flwr", "ray", "torch", "torchvision", "timm", "numpy", "scikit-learn")
_ROOT = Path(__file__).resolve().parents[2]


def code_facts(config: RunConfig | None = None) -> dict[str, Any]:
    """Return what identifies the code, as summary.json keeps it.

    Parameters
    ----------
    config : RunConfig, optional
        Of the run. Without it, all code counts as used.

    Returns
    -------
    dict
        ``sha256`` of all code; ``parts``: the sha256 of each part that the run uses
        (`fedta_app.runs.used_code`); ``commit``, "unknown" where there is no git checkout of this
        code; ``changed``: the files that the run uses and that are not as committed.
    """
    sources = read_sources(_ROOT)
    facts: dict[str, Any] = {"sha256": sources_sha256(sources), "commit": "unknown"}
    used = set(sources)
    if config is not None:
        parts = used_parts(config, sources)
        facts["parts"] = {part: sources_sha256(sources, paths) for part, paths in parts.items()}
        used = set().union(*parts.values())
    if checkout := _checkout(sources):
        facts["commit"] = _git(checkout, "rev-parse", "HEAD")
        # A file that is not there any more was used by what was committed.
        changed = {path for path in _changed(checkout) if path in used or path not in sources}
        facts["changed"] = sorted(changed)
    return facts


@cache
def code_version() -> str:
    """Return fedta's version and the beginning of the sha256 of the code that runs."""
    return f"{versions()['fedta']} (code {sources_sha256(read_sources(_ROOT))[:12]})"


def code_parts(config: RunConfig) -> dict[str, str]:
    """Return the sha256 of each part of the code that a run uses (`fedta_app.runs.used_code`)."""
    sources = read_sources(_ROOT)
    parts = used_parts(config, sources)
    return {part: sources_sha256(sources, paths) for part, paths in parts.items()}


def uncommitted(code: Mapping[str, Any]) -> str:
    """Return a sentence on what `code_facts` found uncommitted, or an empty text."""
    if not (changed := code.get("changed")):
        return ""
    names = changed if isinstance(changed, list) else ["the code"]  # of older runs: True
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    are = "is" if len(names) == 1 else "are"
    return (
        f"{', '.join(names[:3])}{more} {are} not committed as used now: no commit will repeat this "
        "run, and a report of it says so; commit first to avoid that"
    )


def _checkout(sources: Sources) -> Path | None:
    """Return the git checkout of this code.

    Flower runs a copy of the app, without its history: then it is the checkout which holds the same
    code, where the runner, the working directory or the installed package points to one.
    """
    for folder in dict.fromkeys((_ROOT, *_other_places())):
        tracked = _git(folder, "ls-files", "--error-unmatch", "--", "fedta_app/__init__.py")
        if tracked and (folder == _ROOT or read_sources(folder) == sources):
            return folder
    return None


def _other_places() -> Iterator[Path]:
    if named := os.environ.get(CHECKOUT_VARIABLE):
        yield Path(named)
    yield Path.cwd()
    if installed := editable_checkout():
        yield installed


def _changed(checkout: Path) -> list[str]:
    """Return the Python files of the app that differ from the commit, new ones included."""
    command = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *ROOMS)
    above = _git(
        checkout, "rev-parse", "--show-prefix"
    )  # where the app is a folder of a repository
    entries = [entry[3:] for entry in _git(checkout, *command).split("\0")]
    return [entry.removeprefix(above) for entry in entries if entry.endswith(".py")]


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints, or an empty text where it fails or is not there."""
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.rstrip("\n") if result.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a result depends on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    """Read the versions once in a process: a run asks for them with every file that it writes."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def device_name(device: torch.device) -> str:
    """Return the model of the device, with the thread count where it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
