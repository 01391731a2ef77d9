"""The environment of the processes that a run on Flower's engine starts.

On a cluster it comes from profiles and job scripts that were written for other programs: proxies
that do not know this machine, the address of a Ray cluster, a temporary folder too long for Ray's
sockets. The processes of a run talk to each other on this machine only, whatever it says.
"""

import getpass
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

# RAY_ADDRESS, FLWR_DATABASE, ...: where things are and who may use them. Ray's names in small
# letters, such as RAY_memory_usage_threshold, set limits, and are kept.
_REDIRECTS = re.compile(r"(RAY|FLWR)_[A-Z0-9_]+")
# They change what Python does at its start, or at its end, in a process that nobody watches.
_INTERACTIVE = ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS", "PYTHONPROFILEIMPORTTIME")
_NO_PROXY = ("no_proxy", "NO_PROXY", "no_grpc_proxy")  # the last one is gRPC's, if it is there
_HERE = ("localhost", "127.0.0.1", "::1")


def child_environment(
    home: Path, scripts: Path, inherited: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of a run's processes.

    Parameters
    ----------
    home : Path
        A folder of this run alone, for what Flower and Ray write.
    scripts : Path
        Where the commands of Flower are.
    inherited : mapping
        The environment of this process.
    """
    left_out = {*redirects(inherited), *_INTERACTIVE}
    kept = {name: value for name, value in inherited.items() if name not in left_out}
    return {
        **kept,
        **_without_proxy(inherited),
        **_named_user(),
        # Flower starts its scripts by name.
        "PATH": os.pathsep.join([str(scripts), inherited.get("PATH", os.defpath)]),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": str(sys.flags.utf8_mode),  # paths mean the same there as here
        "RAY_ADDRESS": "local",  # without it, Ray also joins a cluster that anybody runs here
        "RAY_TMPDIR": str(home),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def redirects(inherited: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that would lead Flower or Ray elsewhere, sorted."""
    return sorted(name for name in inherited if _REDIRECTS.fullmatch(name))


def _without_proxy(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that except this machine from all proxies."""
    # Programs differ in which of the two spellings they prefer: both say the same.
    both = [inherited[name] for name in ("no_proxy", "NO_PROXY") if inherited.get(name)]
    values = dict.fromkeys(("no_proxy", "NO_PROXY"), both)
    if inherited.get("no_grpc_proxy"):
        values["no_grpc_proxy"] = [inherited["no_grpc_proxy"]]
    return {name: ",".join([*found, *_HERE]) for name, found in values.items()}


def _named_user() -> dict[str, str]:
    """Return a name for a user without one, as containers have them: libraries ask for it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        return {"LOGNAME": str(os.getuid())}
    return {}
