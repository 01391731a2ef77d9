"""A training step on a CPU: float32 against bf16, with attention fused and written out.

What `precision = "auto"` chooses between. The steps are taken in turn in one process, on the same
images; a ratio is the median over the turns of a variant's time by that of float32, fused.

    python -m benchmarks.bench_precision [--json PATH] [--pairs N] [--threads N] [--batch N]
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.harness.pairs import in_turn, median_ratio
from benchmarks.harness.report import facts, write
from fedta_app.device.cpu_kernels import has_bf16_units, use_kernels, write_out_attention
from fedta_app.models.building import build_model
from fedta_app.seeding import torch_generator
from fedta_app.training.passes import autocast

CPU = torch.device("cpu")
VARIANTS = [("fp32", "fused"), ("fp32", "written out"), ("bf16", "fused"), ("bf16", "written out")]


def _small() -> nn.Module:
    values = {"image_size": 0, "num_classes": 100, "in_channels": 3, "seed": 0}
    return build_model("vit_cifar", weights="random", **values).model


def _vit_s() -> nn.Module:
    return timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=100)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit_cifar": (_small, 32),
    "ViT-S/16": (_vit_s, 224),
}


def measure(pairs: int, batch: int) -> list[dict[str, Any]]:
    """Time forward and backward passes of every model and variant.

    Returns
    -------
    list of dict
        ``model``, ``precision``, ``attention``, ``ms`` (median) and ``ratio`` to the first variant.
    """
    rows = []
    for name, (make, size) in MODELS.items():
        generator = torch_generator("bench_precision")
        images = torch.randn(batch, 3, size, size, generator=generator)
        labels = torch.randint(100, (batch,), generator=generator)
        times = in_turn([_step(make(), *kind, images, labels) for kind in VARIANTS], pairs)
        for (precision, attention), column in zip(VARIANTS, times, strict=True):
            figures = {
                "ms": 1000 * statistics.median(column),
                "ratio": median_ratio(column, times[0]),
            }
            what = {"model": name, "precision": precision, "attention": attention}
            rows.append({**what, **figures})
    return rows


def _step(
    model: nn.Module, precision: str, attention: str, images: Tensor, labels: Tensor
) -> Callable[[], None]:
    use_kernels(model, "auto", CPU)
    if attention == "written out":
        write_out_attention(model)

    def run() -> None:
        model.zero_grad()
        with autocast(precision, CPU):
            logits = model(images)
        cross_entropy(logits.float(), labels).backward()

    return run


def main(arguments: list[str] | None = None) -> None:
    """Print one line per row, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    units = has_bf16_units()
    rows = measure(options.pairs, options.batch)
    print(f"batch {options.batch}, {options.threads} threads, bf16 units: {units}")
    print(f"{'model':<10} {'precision':<9} {'attention':<12} {'ms':>8}  ratio")
    for row in rows:
        print("{model:<10} {precision:<9} {attention:<12} {ms:>8.1f} {ratio:>6.2f}".format(**row))
    write(options.json, {**facts(), "batch": options.batch, "bf16-units": units, "rows": rows})


if __name__ == "__main__":
    main()
