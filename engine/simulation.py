"""Flower's simulation engine, when one of its processes dies.

Flower keeps a pool of Ray actors in which clients take turns. An actor that died (one that took too
much memory is killed by Linux or by Ray) goes back into the pool, where it is the first that is
free: nearly every client after that is given to a dead process, and fails. So the server has to
stop; a new simulation goes on from the checkpoint.
"""

import re
import sys

# What Flower says of a client that failed begins with the class of the error.
_DIED = re.compile(
    r"<class 'ray\.exceptions\."
    r"(\w*Actor\w*Error|WorkerCrashedError|OutOfMemoryError|NodeDiedError)'>"
)


def process_died(reason: str) -> bool:
    """Return whether the process of a client of a simulation died, given why the client failed.

    A client of a deployment writes its reason itself, and cannot make that of it: the server of a
    deployment has nothing to do with Ray.
    """
    return "ray" in sys.modules and _DIED.match(reason.strip()) is not None
