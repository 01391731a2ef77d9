"""Errors that are not a run's fault but its machine's: no memory is left, or a GPU is gone."""

import torch

from fedta_app.errors import first_line

_FULL = (MemoryError, torch.cuda.OutOfMemoryError)
# Of CUDA itself, after which nothing works on that GPU in this process; older torch has none.
_GONE: tuple[type[Exception], ...] = (getattr(torch, "AcceleratorError", torch.cuda.CudaError),)


def exhausted(error: BaseException) -> str:
    """Return a sentence on the machine's memory or GPU, or "" where the error is another.

    Examples
    --------
    >>> exhausted(MemoryError("1 GB"))  # doctest: +ELLIPSIS
    'this machine has no memory left (MemoryError: 1 GB): a smaller batch-size, ...'
    >>> exhausted(ValueError("1 GB"))
    ''
    """
    if isinstance(error, _FULL):
        where = "GPU" if isinstance(error, torch.cuda.OutOfMemoryError) else "machine"
        return (
            f"this {where} has no memory left ({first_line(error)}): a smaller batch-size, fewer "
            "clients at a time (--client-gpus, --client-cpus) or runs at a time (--jobs) take less"
        )
    if isinstance(error, _GONE):
        return f"this GPU does not work any more ({first_line(error)}): start again"
    return ""
