"""What a CUDA GPU needs to be told: which precision, repeatable bits, copies nobody waits for.

Of a run on the CPU only "auto" is decided here: its precision.

Policy for float32: "fp32" is IEEE single precision everywhere, patch embeddings and convolutions
included, where PyTorch by itself would let cuDNN round to TF32; "tf32" lets both matrix products
and convolutions round their inputs to TF32 (compute capability 8.0 or above; elsewhere it is fp32).
With bf16 and fp16, what stays in float32 (head statistics, Fisher information) is IEEE too.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import deterministic

from fedta_app.device.cpu_kernels import has_bf16_units

# torch refuses deterministic algorithms without it; cuBLAS reads it when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_AMPERE = (8, 0)  # the first compute capability with bf16 and TF32 in its matrix units


def has_bf16(device: torch.device) -> bool:
    """Tell whether the device computes in bf16 itself; older ones only emulate it, slowly."""
    if device.type != "cuda":
        return has_bf16_units()
    return torch.cuda.get_device_capability(device) >= _AMPERE


def resolve_precision(name: str, device: torch.device) -> str:
    """Return the precision that `precision` names; "auto" goes by the device.

    That is bf16 where the device has it, else fp16 on a CUDA card such as a T4, and fp32 on a CPU.
    """
    if name != "auto":
        return name
    if has_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def set_float32_policy(precision: str, device: torch.device) -> None:
    """Say, for this process, what float32 arithmetic may do: TF32 where asked for, else IEEE."""
    tf32 = precision == "tf32" and device.type == "cuda"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def repeatable(device: torch.device, wanted: bool = True) -> Iterator[None]:
    """Use, within the block, only CUDA algorithms that give the same bits every time.

    Without it the backward pass of fused attention adds up in any order. An operation without such
    an algorithm raises torch's RuntimeError.
    """
    if device.type != "cuda" or not wanted:
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    try:
        torch.use_deterministic_algorithms(True)
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        deterministic.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a CPU tensor without waiting for what the GPU is still doing.

    A copy from ordinary memory waits for the whole stream, so that no step could be queued before
    the last one is done; a copy from pinned memory is queued like everything else.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
