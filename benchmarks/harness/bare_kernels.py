"""The bare loop with fedta's matrix products: the honest limit of an engine around the same steps.

    python -m benchmarks.harness.bare_kernels FOLDER

It multiplies as fedta does on this processor (`fedta_app.device.cpu_kernels`; by PyTorch's own
products where those are the choice). fedta changes no setting of the memory allocator, and neither
does this.
"""

import sys

import torch

from benchmarks.peers.bare_loop import bare_loop
from benchmarks.peers.task import read_task, write_result
from fedta_app.device.cpu_kernels import use_kernels


def main(folder: str) -> None:
    """Do the task of a folder."""
    stamps = bare_loop(
        read_task(folder), lambda model: use_kernels(model, "auto", torch.device("cpu"))
    )
    write_result(folder, stamps)


if __name__ == "__main__":
    main(sys.argv[1])
