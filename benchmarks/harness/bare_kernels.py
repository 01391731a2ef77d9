"""The bare loop with fedta's matrix products: the honest limit of an engine around the same steps.

    python -m benchmarks.harness.bare_kernels FOLDER

It multiplies as fedta does on this processor (`fedta_app.device.cpu_kernels`; by PyTorch's own
products where those are the choice), in one process, or in as many of one thread each as there are
actors. fedta changes no setting of the memory allocator, and neither does this.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.peers.bare_loop import bare_loop
from benchmarks.peers.bare_processes import bare_processes
from benchmarks.peers.task import read_task, write_result
from fedta_app.device.cpu_kernels import use_kernels


def prepare(model: nn.Module) -> None:
    """Let a model multiply as fedta does."""
    use_kernels(model, "auto", torch.device("cpu"))


def main(folder: str) -> None:
    """Do the task of a folder."""
    task = read_task(folder)
    processes: int = json.loads(Path(folder, "task.json").read_text())["actors"]
    loop = bare_loop if processes == 1 else partial(bare_processes, processes=processes)
    stamps, _ = loop(task, prepare=prepare)
    write_result(folder, stamps)


if __name__ == "__main__":
    main(sys.argv[1])
