"""What the scripts of a deployment refuse to overwrite."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "deployment"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not (shutil.which("openssl") and shutil.which("ssh-keygen")),
    reason="the scripts need Linux, openssl and ssh-keygen",
)


def script(name: str, *words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(SCRIPTS / name), *map(str, words)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_certificates_are_made_once_and_are_their_owners(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert script("certificates.sh", folder, "127.0.0.1", 2).returncode == 0
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"ca.crt", "server.key", "node-0", "node-1.pub"} <= made.keys()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, *folder.iterdir()))
    again = script("certificates.sh", folder, "127.0.0.1", 3)
    assert again.returncode == 1 and "has certificates already" in again.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made


def test_keys_are_not_registered_with_another_server(tmp_path: Path) -> None:
    home = tmp_path / "flwr"
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/node-0.pub").write_text("a key")
    home.mkdir()
    other = '[superlink.fedta]\naddress = "127.0.0.1:1"\nroot-certificates = "/elsewhere/ca.crt"\n'
    (home / "config.toml").write_text(other)
    refused = script("register.sh", tmp_path / "keys", 9443, FLWR_HOME=str(home))
    assert refused.returncode == 1 and "another [superlink.fedta]" in refused.stderr
    assert (home / "config.toml").read_text() == other
    assert not (tmp_path / "keys/nodes.toml").exists()
