"""Weights files of backbones, with how they were trained as their metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fedta_app.files import write_atomically


def backbone_state(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return every parameter but the head's, on the CPU."""
    return {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith("head.")
    }


def write_weights(path: Path, state: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write a safetensors file with the facts as its metadata; equal facts give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One entry: safetensors writes several in random order.
    write_atomically(path, save(state, {"about": json.dumps(about)}))
