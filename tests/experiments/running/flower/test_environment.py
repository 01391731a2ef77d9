"""What the processes of a run inherit from the shell, and what not."""

import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.running.flower.environment import child_environment, redirects

HOME, SCRIPTS = Path("/tmp/fedta-x"), Path("/venv/bin")
OURS = child_environment(HOME, SCRIPTS, {})


def test_nothing_that_redirects_flower_or_ray_is_passed_on() -> None:
    shell = {
        "RAY_ADDRESS": "10.0.0.1:6379", "RAY_NAMESPACE": "x", "RAY_RUNTIME_ENV_HOOK": "a.b",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "FLWR_HOME": "/x", "FLWR_DATABASE": "/x/db",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "1", "PYTHONINSPECT": "1", "PYTHONSTARTUP": "/x.py",
        "PYTHONWARNINGS": "error", "RAY_TMPDIR": "/y", "FLWR_TELEMETRY_ENABLED": "1",
    }  # fmt: skip
    assert child_environment(HOME, SCRIPTS, shell) == OURS
    assert {"RAY_ADDRESS", "FLWR_DATABASE", "FLWR_HOME"} < set(redirects(shell))
    assert OURS["RAY_ADDRESS"] == "local"  # not the newest cluster of this machine either
    assert OURS["FLWR_HOME"] == OURS["RAY_TMPDIR"] == str(HOME)


def test_what_else_is_set_is_passed_on() -> None:
    shell = {
        "HOME": "/home/a", "TMPDIR": "/scratch", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "/mine",
        "OMP_NUM_THREADS": "1", "LC_ALL": "POSIX", "http_proxy": "http://proxy:3128",
        "RAY_memory_usage_threshold": "0.99",
    }  # fmt: skip
    found = child_environment(HOME, SCRIPTS, {"PATH": "/usr/bin", **shell})
    assert {name: found[name] for name in shell} == shell
    assert found["PATH"] == f"{SCRIPTS}{os.pathsep}/usr/bin"
    assert not redirects(shell)


@pytest.mark.parametrize("own", [{}, {"no_proxy": "a.b"}, {"NO_PROXY": "a.b,c"}, {"no_proxy": ""}])
def test_this_machine_is_reached_without_a_proxy(own: dict[str, str]) -> None:
    shell = {**own, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    found = child_environment(HOME, SCRIPTS, shell)
    assert found["no_proxy"] == found["NO_PROXY"]
    names = found["no_proxy"].split(",")
    assert {"localhost", "127.0.0.1"} <= set(names)
    assert set(",".join(own.values()).split(",")) - {""} <= set(names)
    assert "no_grpc_proxy" not in found
    # The proxy of Python's own library, and so of others that read the same variables.
    code = "import urllib.request as u; print(bool(u.proxy_bypass('127.0.0.1:80')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **found}, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


def test_grpcs_own_variable_wins_so_it_is_extended_too() -> None:
    found = child_environment(HOME, SCRIPTS, {"no_grpc_proxy": "x"})
    assert found["no_grpc_proxy"] == "x,localhost,127.0.0.1,::1"


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    assert "LOGNAME" not in OURS
    monkeypatch.setattr(getpass, "getuser", nobody)
    assert child_environment(HOME, SCRIPTS, {})["LOGNAME"] == str(os.getuid())


NAMES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["RAY_", "FLWR_", "ray_", "MY_RAY_", ""]),
        st.text("ABab_", min_size=1, max_size=8),
    ),
)


@settings(max_examples=50)
@given(st.dictionaries(NAMES, st.text("xyz=:,", max_size=4), max_size=6))
def test_of_any_environment_only_what_redirects_is_left_out(shell: dict[str, str]) -> None:
    found = child_environment(HOME, SCRIPTS, shell)
    assert OURS.items() <= (found | {"PATH": OURS["PATH"]} | _proxies(OURS)).items()
    lost = {name for name, value in shell.items() if found.get(name) != value}
    for name in lost - OURS.keys():
        assert name.startswith(("RAY_", "FLWR_")) and name == name.upper()


def _proxies(environment: dict[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in ("no_proxy", "NO_PROXY")}
