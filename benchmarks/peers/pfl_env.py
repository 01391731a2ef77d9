"""A virtual environment with pfl-research, made once: it shares the torch that runs fedta."""

import subprocess
import sys
import sysconfig
from pathlib import Path

VERSION = "0.6.0"
CACHE = Path("~/.cache/fedta").expanduser() / f"pfl-{VERSION}"
_TIMEOUT = 600.0  # seconds


class PeerError(RuntimeError):
    """A peer that cannot be measured here; the message says why."""


def pfl_python(cache: Path = CACHE) -> Path:
    """Return a Python that has pfl, made at the first call.

    The environment is its own, for pfl pins older packages; of what it does not have, torch first,
    it sees this Python's, through a .pth file: a second torch would cost 6 GB.

    Raises
    ------
    PeerError
        Where pfl cannot be installed.
    """
    python = cache / "bin" / "python"
    if not (cache / ".ready").exists():
        try:
            _run([sys.executable, "-m", "venv", "--clear", str(cache)])
            own = _run(
                [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
            )
            shared = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
            Path(own.strip(), "shared.pth").write_text("\n".join(shared) + "\n")
            _run([str(python), "-m", "pip", "install", "--quiet", f"pfl=={VERSION}"])
        except (OSError, subprocess.SubprocessError) as error:
            raise PeerError(f"pfl {VERSION} cannot be installed here: {_reason(error)}") from error
        (cache / ".ready").touch()
    return python


def check_pfl(python: str | Path) -> str:
    """Return the version of pfl that a Python has, or raise PeerError."""
    code = "import importlib.metadata, pfl.model.pytorch; print(importlib.metadata.version('pfl'))"
    try:
        return _run([str(python), "-c", code]).strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise PeerError(f"{python} cannot import pfl: {_reason(error)}") from error


def _run(command: list[str]) -> str:
    # Not in the caller's folder: python -m would import what lies there.
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_TIMEOUT, cwd="/"
    )
    return done.stdout


def _reason(error: Exception) -> str:
    said = str(getattr(error, "stderr", "") or "").strip().splitlines()
    return said[-1] if said else str(error)
