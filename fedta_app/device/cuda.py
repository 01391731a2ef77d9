"""Precision, repeatable results and asynchronous copies on a CUDA GPU.

With "fp32", float32 arithmetic is IEEE single precision everywhere, also in convolutions, for which
PyTorch's default is TF32. With "tf32", matrix products and convolutions round their inputs to TF32
(from compute capability 8.0 on; on other devices it is the same as fp32). With bf16 and fp16, what
stays in float32 (head statistics, Fisher information) is IEEE single precision.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import deterministic

from fedta_app.device.cpu_kernels import has_bf16_units
from fedta_app.errors import ConfigError

# Deterministic algorithms need it, and cuBLAS reads it only at its start.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_AMPERE = (8, 0)  # the first compute capability with bf16 and TF32 in its matrix units


def resolve_device(name: str) -> torch.device:
    """Return the device of that name, or raise ConfigError if it is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {name!r} is not allowed: this machine has {torch.cuda.device_count()} CUDA "
            "devices that torch can use; device is auto, cpu, or a CUDA device that is there"
        )
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Return whether the device has bf16 units; devices without them emulate bf16 slowly."""
    if device.type != "cuda":
        return has_bf16_units()
    return torch.cuda.get_device_capability(device) >= _AMPERE


def resolve_precision(name: str, device: torch.device) -> str:
    """Return the precision of the key `precision`, where "auto" depends on the device.

    "auto" is bf16 if the device has bf16 units, else fp16 on CUDA and fp32 on a CPU.
    """
    if name != "auto":
        return name
    if has_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


def set_float32_policy(precision: str, device: torch.device) -> None:
    """Make the float32 arithmetic of this process TF32 if asked for, else IEEE."""
    tf32 = precision == "tf32" and device.type == "cuda"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def repeatable(device: torch.device, wanted: bool = True) -> Iterator[None]:
    """Use, within the block, only CUDA algorithms that give the same bits every time.

    Without it, the backward pass of fused attention adds in varying order. An operation without
    such an algorithm raises torch's RuntimeError.
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
    """Return the tensor on the device, without waiting for the work that the GPU has queued.

    A copy from ordinary memory would wait for it; a copy from pinned memory is queued too.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators, which dropout uses, and restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
