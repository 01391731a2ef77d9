"""What produced a result: code, versions of packages, device."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("fedta", "flwr", "ray", "torch", "torchvision", "timm", "numpy", "scikit-learn")
_ROOMS = ("fedta_app", "engine", "client_app", "strategies", "server_app")


def code_facts() -> dict[str, str | bool]:
    """Return the sha256 of the code, and its git commit if it lies in a checkout.

    `flwr run` executes a copy of the code without its history, which has the same sha256.
    """
    root = Path(__file__).resolve().parents[2]
    facts: dict[str, str | bool] = {"sha256": _code_sha256(root), "commit": "unknown"}
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        facts["commit"] = commit
        facts["changed"] = bool(_git(root, "status", "--porcelain", "--", *_ROOMS))
    return facts


def _code_sha256(root: Path) -> str:
    digest = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a result depends on."""
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
