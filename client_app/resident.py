"""A client process that stays, where Flower starts one for every message.

So it does on its deployment engine, and each would import torch, read the data and build the model:
ten seconds for a message. The process of a message hands it to one that stays instead, over a
socket in a folder that this user alone may open, and takes the reply. The process that stays ends
with the node that it works for, or when nothing has come for a while.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

from filelock import FileLock, Timeout
from flwr.app import Context, Message

# Flower does not document these as public; only this module uses them.
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context as ContextBytes
from flwr.proto.message_pb2 import Message as MessageBytes
from flwr.supercore.task_identity import TaskIdentity

_CODE = Path(__file__).resolve().parents[1]
_START_TIMEOUT = 60.0  # seconds until it listens, which it does before it imports torch
_IDLE = 900.0  # seconds without a message after which it ends
_LOOK = 1.0  # seconds between two looks whether the node is still there
_OWNER_ONLY = 0o700
_STARTED: list["subprocess.Popen[bytes]"] = []  # kept, as Python warns of those that it forgets


class NoResidentError(RuntimeError):
    """There is no process that stays, and none can be started."""


def for_one_message() -> bool:
    """Return whether Flower started this process for a single message."""
    return os.name == "posix" and "flwr.supernode.runtime.run_clientapp" in sys.modules


def answer(message: Message, context: Context) -> Message:
    """Return the reply of the process that stays, which is started if there is none.

    Raises
    ------
    NoResidentError
        When it cannot be reached.
    RuntimeError
        What the ClientApp raised there, in its words.
    """
    node = os.getppid()  # Flower's process that starts one for each message
    with _connected(_address(context, node), node) as connection:
        who = {name: getattr(TaskIdentity, name) for name in ("task_id", "run_id", "node_id")}
        try:
            connection.send_bytes(json.dumps(who).encode())
            connection.send_bytes(message_to_proto(message).SerializeToString())
            connection.send_bytes(context_to_proto(context).SerializeToString())
            kind, content = connection.recv_bytes(), connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise RuntimeError("this node's client process ended: out of memory?") from error
    if kind == b"error":
        raise RuntimeError(content.decode())
    return message_from_proto(MessageBytes.FromString(content))


def _address(context: Context, node: int) -> Path:
    """Return the socket of a node, a run and this code; make its folder.

    Raises
    ------
    NoResidentError
        When the folder is somebody else's, or open to others.
    """
    folder = Path(tempfile.gettempdir()) / f"fedta-clients-{os.getuid()}"
    try:
        folder.mkdir(mode=_OWNER_ONLY, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise NoResidentError(f"{folder} cannot be made: {error.strerror}") from error
    if found.st_uid != os.getuid() or found.st_mode & 0o777 != _OWNER_ONLY or folder.is_symlink():
        raise NoResidentError(f"{folder} is not this user's alone")
    what = f"{_CODE} {context.run_id} {context.node_id} {node}"
    return folder / hashlib.sha256(what.encode()).hexdigest()[:16]


def _connected(address: Path, node: int) -> Connection:
    started, end = None, time.monotonic() + _START_TIMEOUT
    while time.monotonic() < end:
        try:
            connection = Client(str(address), "AF_UNIX")
            connection.recv_bytes()  # a process that is just ending takes connections too
            return connection
        except (OSError, EOFError):
            if started is None or started.poll() is not None:
                started = _start(address, node)
            time.sleep(0.1)
    raise NoResidentError(f"no client process listens at {address}")


def _start(address: Path, node: int) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join([str(_CODE), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = subprocess.Popen(
        [sys.executable, "-m", "client_app.resident", str(address), str(node)],
        cwd=_CODE,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    _STARTED.append(started)
    return started


class Resident:
    """The process that stays: answers one message after the other.

    Parameters
    ----------
    node : int
        The process that it ends with.
    """

    def __init__(self, address: Path, node: int) -> None:
        self._address = address
        self._lock = address.with_suffix(".lock")
        self._node = node
        self._busy = False
        self._last = time.monotonic()

    def serve(self) -> None:
        """Answer messages until the node is gone; return at once where another process does."""
        try:
            with FileLock(self._lock, timeout=0):
                self._address.unlink(missing_ok=True)  # of one that was killed
                with Listener(str(self._address), "AF_UNIX") as listener:
                    threading.Thread(target=self._watch, daemon=True).start()
                    while True:
                        with listener.accept() as connection:
                            self._busy = True
                            self._answer(connection)
                            self._busy, self._last = False, time.monotonic()
        except Timeout:
            return

    def _answer(self, connection: Connection) -> None:
        try:
            connection.send_bytes(b"ready")
            who, message, context = (connection.recv_bytes() for _ in range(3))
        except (EOFError, OSError):
            return  # who asked has ended
        for name, value in json.loads(who).items():
            setattr(TaskIdentity, name, value)
        try:
            # Here, where it is waited for: it imports torch.
            app = importlib.import_module("client_app.app").app
            reply = app(
                message=message_from_proto(MessageBytes.FromString(message)),
                context=context_from_proto(ContextBytes.FromString(context)),
            )
            kind, content = b"reply", message_to_proto(reply).SerializeToString()
        except Exception as error:
            kind, content = b"error", f"{type(error).__name__}: {error}".encode()
        try:
            connection.send_bytes(kind)
            connection.send_bytes(content)
        except OSError:
            return

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK)
            idle = not self._busy and time.monotonic() - self._last > _IDLE
            if idle or not _runs(self._node):
                for path in (self._address, self._lock):
                    path.unlink(missing_ok=True)
                os._exit(0)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # One that has ended counts until its parent has asked for its status; on Linux it shows.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return True
    return state not in "ZX"


if __name__ == "__main__":
    Resident(Path(sys.argv[1]), int(sys.argv[2])).serve()
