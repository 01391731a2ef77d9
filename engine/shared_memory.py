"""Vectors in memory that all processes of one machine share (Linux only).

A vector is written once into a buffer and read in place by every process that has its handle. The
buffers are anonymous files (`memfd_create`), which other processes of the same user open under
``/proc/<pid>/fd``. They need no clean-up, do not count against the limits of ``/dev/shm``, and are
freed by the kernel when the processes that use them end, even by ``kill -9``.

Touching fresh memory costs more than writing to it, so buffers are reused: a process holds a few,
however many clients there are. A flag in the buffer says whether it is in use. The process that
made the buffer sets the flag, and the last reader of the vector clears it.
"""

import json
import mmap
import os
import secrets
import sys
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

_TOKEN_BYTES = 16
_FLAG = _TOKEN_BYTES  # where the flag is
_HEADER = 64  # bytes before the vector, which is aligned to a cache line
_FREE, _TAKEN = 0, 1
_NAME = "fedta"
_MAPPINGS_KEPT = 64  # of other processes' buffers; dropping one costs a new mapping, no data


class SharingError(OSError):
    """A handle refers to memory that this process cannot map."""


class _Buffer:
    """A mapped anonymous file: a token that identifies it, a flag, and the data."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.capacity = size - _HEADER
        self.number = 0
        self._memory = mmap.mmap(descriptor, size)
        self.data = torch.frombuffer(self._memory, dtype=torch.uint8)[_HEADER:]

    @property
    def token(self) -> bytes:
        return self._memory[:_TOKEN_BYTES]

    @property
    def taken(self) -> bool:
        return self._memory[_FLAG] == _TAKEN

    @taken.setter
    def taken(self, value: bool) -> None:
        self._memory[_FLAG] = _TAKEN if value else _FREE

    def view(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return the first bytes as a tensor."""
        count = torch.Size(shape).numel() * dtype.itemsize
        return self.data[:count].view(dtype).view(shape)

    @classmethod
    def create(cls, capacity: int) -> "_Buffer":
        """Return a new buffer for that many bytes."""
        descriptor = os.memfd_create(_NAME)
        os.ftruncate(descriptor, _HEADER + capacity)
        buffer = cls(descriptor, _HEADER + capacity)
        buffer._memory[:_TOKEN_BYTES] = secrets.token_bytes(_TOKEN_BYTES)
        return buffer


_own: list[_Buffer] = []


def can_share() -> bool:
    """Return whether this system has anonymous files that other processes can open."""
    return (
        sys.platform == "linux" and hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()
    )


def take(shape: tuple[int, ...], dtype: torch.dtype, number: int = 0) -> Tensor:
    """Return an uninitialised tensor in a free buffer of this process, and mark that as in use.

    Parameters
    ----------
    number : int
        Of the round that it is a reply of, for `free_before`; 0 where it is none.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    free = [buffer for buffer in _own if not buffer.taken]
    buffer = min(
        (buffer for buffer in free if buffer.capacity >= size),
        key=lambda buffer: buffer.capacity,
        default=None,
    )
    if buffer is None:
        for small in free:  # the new buffer replaces those that are too small
            _own.remove(small)
            os.close(small.descriptor)
        buffer = _Buffer.create(size)
        _own.append(buffer)
    buffer.taken, buffer.number = True, number
    return buffer.view(shape, dtype)


def free_before(number: int) -> None:
    """Free this process's replies to earlier rounds: the server has read them, or never will.

    One that comes after the server stopped waiting is not read, and so nobody else frees it.
    """
    for buffer in _own:
        if 0 < buffer.number < number:
            buffer.taken, buffer.number = False, 0


def handle(tensor: Tensor) -> bytes | None:
    """Return the handle of a tensor that `take` made, or None for any other."""
    for buffer in _own:
        if tensor.data_ptr() == buffer.data.data_ptr() and tensor.is_contiguous():
            where = {"pid": os.getpid(), "fd": buffer.descriptor, "token": buffer.token.hex()}
            return json.dumps(where).encode()
    return None


def read(handle: bytes, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the vector of a handle without a copy; it is valid until `release`.

    Raises
    ------
    SharingError
        If the memory belongs to another machine or user, its process has ended, or the handle is
        no handle of anonymous memory of this size.
    """
    buffer = _buffer(handle)
    if torch.Size(shape).numel() * dtype.itemsize > buffer.capacity:
        raise SharingError(f"the shared memory is too small for {shape} {dtype}")
    return buffer.view(shape, dtype)


def release(handle: bytes) -> None:
    """Mark the buffer as free, so that the process that made it can reuse it."""
    _buffer(handle).taken = False


def _buffer(handle: bytes) -> _Buffer:
    pid, descriptor, token = _parsed(handle)
    for buffer in _own:
        if buffer.token == token:
            return buffer
    return _mapped(pid, descriptor, token)


def _parsed(handle: bytes) -> tuple[int, int, bytes]:
    """Return process, descriptor and token of a handle; it comes from another process."""
    try:
        where = json.loads(handle)
        pid, descriptor, token = where["pid"], where["fd"], bytes.fromhex(where["token"])
    except (ValueError, KeyError, TypeError) as error:
        raise SharingError("a handle of shared memory cannot be read") from error
    whole = all(type(number) is int and number >= 0 for number in (pid, descriptor))
    if not whole or len(token) != _TOKEN_BYTES:
        raise SharingError("a handle of shared memory names no process, descriptor and token")
    return pid, descriptor, token


@lru_cache(_MAPPINGS_KEPT)
def _mapped(pid: int, descriptor: int, token: bytes) -> _Buffer:
    path = f"/proc/{pid}/fd/{descriptor}"
    try:
        # Looked at before it is opened: opening a device or a pipe can have effects of its own.
        if not os.readlink(path).startswith(f"/memfd:{_NAME}") or os.stat(path).st_uid != _user():
            raise SharingError(f"{path} is not shared memory of this user's runs")
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(opened).st_size <= _HEADER:
                raise SharingError(f"{path} is too small")
            buffer = _Buffer(opened, os.fstat(opened).st_size)
        finally:
            os.close(opened)  # the mapping stays valid
    except SharingError:
        raise
    except (OSError, ValueError) as error:
        raise SharingError(f"{path} cannot be mapped: {error}") from error
    if buffer.token != token:
        raise SharingError(f"{path} holds other memory: the handle may be from another machine")
    return buffer


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else -1
