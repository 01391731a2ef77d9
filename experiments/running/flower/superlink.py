"""Flower's SuperLink for one run, which ends with the run or with this process.

It takes seconds to start. A command that still has something to check starts it before that, and
the run finds it ready: `superlink_ahead`.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import ROOT
from experiments.installed import flower_scripts
from experiments.running.flower.environment import child_environment, redirects
from experiments.running.flower.home import run_home
from experiments.running.signals import die_with_parent
from fedta_app.errors import RunError
from fedta_app.progress import phase
from fedta_app.runs.provenance import CHECKOUT_VARIABLE

SCRIPTS = flower_scripts()
CONNECTION = "fedta"
_START_TIMEOUT = 120.0  # seconds
_END_TIMEOUT = 5.0


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink that has been started, and may not answer yet.

    Attributes
    ----------
    home : Path
        The folder of the run; what works in it ends with the run.
    environment : dict of str to str
        Of every process of the run.
    """

    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    port: int

    def wait(self) -> None:
        """Return when it answers.

        Raises
        ------
        RunError
            When it has ended, or does not answer in time.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        # Not through a proxy, which knows another 127.0.0.1.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with phase("waiting for Flower's SuperLink", sys.stderr):
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    with opener.open(f"http://127.0.0.1:{self.port}/health", timeout=1):
                        return
                except (urllib.error.URLError, OSError):
                    time.sleep(0.1)
        ended = self.process.poll()
        what = f"within {_START_TIMEOUT:g} s" if ended is None else f"(exit status {ended})"
        log = _log(self.home).read_text(encoding="utf-8", errors="replace")
        tail = log.strip().splitlines()[-1:]
        raise RunError(f"Flower's SuperLink did not start {what}: {' '.join(tail) or 'no output'}")


_ahead: list[tuple[SuperLink, ExitStack]] = []


@contextmanager
def superlink_ahead() -> Iterator[None]:
    """Within the block, the first run of fedta gets a SuperLink that is started now."""
    with ExitStack() as stack:
        with suppress(OSError, RunError):  # the run finds out again, and says it of itself
            _ahead.append((stack.enter_context(_started(ROOT)), stack))
        try:
            yield
        finally:
            _ahead.clear()


@contextmanager
def superlink_for(checkout: Path) -> Iterator[SuperLink]:
    """Yield the SuperLink of a run: the one that was started ahead, or else a new one.

    Parameters
    ----------
    checkout : Path
        Where the code of the app comes from; the copies that run are without its history.
    """
    if left_out := redirects(os.environ):
        print(
            f"not passed on to this run's own Flower and Ray: {', '.join(left_out)}",
            file=sys.stderr,
            flush=True,
        )
    with ExitStack() as stack:
        if _ahead and checkout == ROOT:
            link, opened = _ahead.pop()
            stack.push(opened.pop_all())  # it ends with this run
        else:
            link = stack.enter_context(_started(checkout))
        yield link


@contextmanager
def _started(checkout: Path) -> Iterator[SuperLink]:
    with run_home() as home:
        environment = child_environment(home, SCRIPTS, os.environ)
        environment[CHECKOUT_VARIABLE] = str(checkout)
        port = _free_port()
        home.joinpath("config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n'
            f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        command = [
            str(SCRIPTS / "flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1",
            "--port", str(port), "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        with _log(home).open("wb") as stream:
            process = subprocess.Popen(
                command,
                # Ray's actors import what lies in this folder before anything else: another app's
                # client_app, or a checkout that changes during the run.
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to this process, which asks the run to stop
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
            try:
                yield SuperLink(home, environment, process, port)
            finally:
                end(process)


def _log(home: Path) -> Path:
    return home / "superlink.log"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that may have ended by itself."""
    process.terminate()
    try:
        process.wait(timeout=_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
