"""Named tensors as bytes in the layout of safetensors, without copies.

The library's own functions copy all values twice to write them, and once to read them. For what is
as large as the model and written in every round, that took longer than the disk.

The layout (https://github.com/huggingface/safetensors): eight bytes with the length of a header,
the header as JSON, and the values of the tensors one after the other.
"""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_ALIGNMENT = 8  # of the values in the file, so that they can be used where they lie


def tensor_parts(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """Return the bytes of tensors as parts that follow each other.

    The parts refer to the values of tensors that lie on the CPU.

    Parameters
    ----------
    tensors : mapping from name to Tensor of any shape
        Floats, int64, int32, uint8 or bool.

    Examples
    --------
    >>> parts = tensor_parts({"control": torch.tensor([1.0, 2.0])})
    >>> data = bytearray(b"".join(parts))
    >>> tensors_in(memoryview(data))
    {'control': tensor([1., 2.])}
    """
    header, parts, end = {}, [], 0
    # The widest first, so that each begins at a multiple of its width.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name].detach().cpu().contiguous()
        values = tensor.view(-1).view(torch.uint8).numpy().data
        start, end = end, end + len(values)
        shape = list(tensor.shape)
        header[name] = {
            "dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end],
        }  # fmt: skip
        parts.append(values)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [len(text).to_bytes(8, "little") + text, *parts]


def tensors_in(data: memoryview) -> dict[str, Tensor]:
    """Return the tensors in these bytes; they share their memory.

    Raises
    ------
    ValueError
        If the bytes are not those of tensors.
    """
    length = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    try:
        header = json.loads(bytes(data[8:length]))
        values = torch.frombuffer(data, dtype=torch.uint8)[length:]
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            tensor = values[start:end].view(_DTYPES[entry["dtype"]])
            tensors[name] = tensor.view(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the bytes are not those of tensors ({error})") from error
    return tensors
