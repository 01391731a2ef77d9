"""The client process that stays: one for a node, gone with it, and the same weights."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client_app import entry, resident
from client_app.resident import NoResidentError, answer
from server_app.loop import run_rounds
from tests.runs import read_summary, summary_of
from tests.server_app import test_deployment
from tests.server_app.test_deployment import RUN, grid_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
ECHO = """
import os, time
from flwr.app import ConfigRecord, Message, RecordDict

def app(message, context):
    if "die" in message.content:
        os._exit(1)
    if "fail" in message.content:
        raise ValueError("it broke")
    content = RecordDict({"config": ConfigRecord({"pid": os.getpid(), "node": context.node_id})})
    return Message(content, reply_to=message)
"""


def processes_at(folder: Path) -> list[int]:
    """Return the processes that stay and whose socket is below a folder."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and resident._runs(int(path.name)):
            try:
                words = (path / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "client_app.resident" in words and str(folder) in " ".join(words):
                found.append(int(path.name))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder with a short name, as paths of sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="res") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        try:
            yield Path(name)
        finally:
            for pid in processes_at(Path(name)):
                os.kill(pid, signal.SIGKILL)
            while resident._STARTED:
                resident._STARTED.pop().wait()


@pytest.fixture
def echo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the process that stays find an app that imports nothing."""
    code = folder / "code"
    (code / "client_app").mkdir(parents=True)
    (code / "client_app/__init__.py").write_text("")
    (code / "client_app/app.py").write_text(ECHO)
    (code / "client_app/resident.py").write_text(Path(resident.__file__).read_text())
    monkeypatch.setattr(resident, "_CODE", code)
    return folder


def message(*names: str) -> tuple[Message, Context]:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    content = RecordDict({name: ConfigRecord({"x": 1}) for name in names})
    question = Message(content, 7, "query")
    question.metadata.__dict__["_message_id"] = "one"
    return question, Context(1, 7, {"partition-id": 0}, RecordDict(), {})


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_run_through_one_process_ends_at_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"num-clients": 1, "num-server-rounds": 2}
    here = summary_of(tmp_path / "here", {**RUN, **few, "engine": "in-process"})
    monkeypatch.setattr(entry, "for_one_message", lambda: True)
    monkeypatch.setattr(test_deployment, "client_app", entry.app)
    grid, config = grid_of(tmp_path / "deployed", **few)
    grid.nodes = {7: {"partition-id": 0}}
    run_rounds(grid, config)
    found = read_summary(tmp_path / "deployed", config)
    assert found["final-weights-sha256"] == here["final-weights-sha256"]
    assert len(grid.asked) > 4 and len(processes_at(folder)) == 1


def test_messages_at_once_find_one_process(echo: Path) -> None:
    pids: list[object] = []

    def ask() -> None:
        reply = answer(*message("hello"))
        assert reply.metadata.reply_to_message_id == "one"
        pids.append(reply.content["config"]["pid"])  # type: ignore[index]

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 4 and len(set(pids)) == 1
    until(lambda: processes_at(echo) == pids[:1])  # those that came too late end


def test_an_error_is_raised_and_an_end_is_said(echo: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^ValueError: it broke$"):
        answer(*message("fail"))
    with pytest.raises(RuntimeError, match="client process ended: out of memory"):
        answer(*message("die"))
    assert answer(*message("hello")).content["config"]["node"] == 7, "another was started"  # type: ignore[index]


def test_it_ends_with_its_node(echo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(os, "getppid", lambda: node.pid)
    answer(*message("hello"))
    assert len(processes_at(echo)) == 1
    node.kill()  # and nobody asks for its status yet
    until(lambda: not processes_at(echo))
    node.wait()
    assert not list((echo / f"fedta-clients-{os.getuid()}").iterdir())


def test_a_folder_that_others_may_open_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = folder / f"fedta-clients-{os.getuid()}"
    own.mkdir()
    own.chmod(0o755)  # whatever the umask leaves of a mode
    with pytest.raises(NoResidentError, match="is not this user's alone"):
        answer(*message("hello"))
    monkeypatch.setattr(entry, "for_one_message", lambda: True)

    class Heavy:
        @staticmethod
        def app(question: Message, context: Context) -> str:
            return "answered here"

    monkeypatch.setattr(entry.importlib, "import_module", lambda name: Heavy)
    assert entry.app(*message("hello")) == "answered here"
    assert "is not this user's alone; this process answers" in capsys.readouterr().out
