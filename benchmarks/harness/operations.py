"""What a vision transformer has to compute, counted, and what a device can, measured."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from fedta_app.device.cuda import set_float32_policy

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TransformerOperations:
    """Floating-point operations per image in matrix products: two per multiply and add.

    Norms, GELU, softmax and residuals are left out, as they are wherever such rates are compared.
    """

    embedding: int
    linear: int
    attention: int

    @classmethod
    def of(cls, model: nn.Module) -> "TransformerOperations":
        """Count those of one of timm's `VisionTransformer`."""
        vit: Any = model
        patches = vit.patch_embed.num_patches
        tokens = patches + vit.num_prefix_tokens
        linear = attention = 0
        for block in vit.blocks:
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                linear += 2 * tokens * layer.weight.numel()
            # Queries times keys, and the result times values, over all heads.
            attention += 2 * 2 * tokens * tokens * block.attn.proj.in_features
        linear += 2 * vit.head.weight.numel()  # of one token, or their mean
        return cls(2 * patches * vit.patch_embed.proj.weight.numel(), linear, attention)

    @property
    def forward(self) -> int:
        """Operations of a forward pass."""
        return self.embedding + self.linear + self.attention

    @property
    def training(self) -> int:
        """Operations of a forward and backward pass.

        Each product has two in the backward pass, but for the first: pixels need no gradient. What
        fused attention computes a second time is not counted.
        """
        return 3 * self.forward - self.embedding


def operations_by_name(model: str, *, image_size: int, num_classes: int) -> TransformerOperations:
    """Count those of one of timm's vision transformers, which is not built for it."""
    with torch.device("meta"):
        built = timm.create_model(
            model, pretrained=False, img_size=image_size, num_classes=num_classes
        )
    return TransformerOperations.of(built)


def matrix_rate(precision: str, device: torch.device, size: int, repeats: int = 15) -> float:
    """Return the operations per second of a square matrix product, the median of some.

    Random numbers: products of zeros draw less power, and run faster than any real ones.
    """
    set_float32_policy(precision, device)
    dtype = _DTYPES.get(precision, torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2)
    )
    out = torch.empty_like(left)
    seconds = median_seconds(lambda: torch.mm(left, right, out=out), device, repeats=repeats)
    return 2 * size**3 / seconds


def median_seconds(
    run: Callable[[], object], device: torch.device, *, repeats: int, warm_up: int = 3
) -> float:
    """Return the median time of a call until the device is done with it."""
    for _ in range(warm_up):
        run()
    return statistics.median(_seconds(run, device) for _ in range(repeats))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
