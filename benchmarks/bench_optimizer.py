"""SparseSGDM against torch.optim.SGD on parameters of the size of ViT-S/16.

Both optimizers step in turn in one process (A B A B), on the same gradients, so that a slow moment
of the machine meets both. The ratio reported is the median over pairs of SparseSGDM / SGD.

    python -m benchmarks.bench_optimizer [--json PATH] [--pairs N] [--threads N]
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.harness.pairs import in_turn, median_ratio
from benchmarks.harness.report import facts, write
from fedta_app.optim.sparse_sgdm import SparseSGDM
from fedta_app.seeding import torch_generator

DENSITIES = (1.0, 0.5, 0.1)
OPTIONS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "momentum+decay": {"momentum": 0.9, "weight_decay": 1e-4},
    "nesterov+decay": {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": True},
    "plain": {},
}


def measure(pairs: int = 15) -> dict[str, Any]:
    """Time pairs of steps for every option set, density and backend.

    Parameters
    ----------
    pairs : int
        Timed pairs per row, after one that is not timed.

    Returns
    -------
    dict
        ``torch``, ``threads``, ``parameters`` and ``rows``: one dict per measurement with
        ``options``, ``foreach``, ``density``, ``sgd_ms``, ``sparse_ms`` (medians) and ``ratio``
        (median over the pairs).
    """
    theirs, ours = _parameters(), _parameters()
    rows = []
    for name, options in OPTIONS.items():
        for foreach in (False, True):
            sgd = torch.optim.SGD(theirs, lr=1e-6, foreach=foreach, **options)
            for density in DENSITIES:
                masks = {p: _mask(p.shape, density, i) for i, p in enumerate(ours)}
                sparse = SparseSGDM(ours, 1e-6, foreach=foreach, masks=masks, **options)
                row = {"options": name, "foreach": foreach, "density": density}
                rows.append({**row, **_compare(sgd, sparse, pairs)})
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in ours),
        "rows": rows,
    }


def _parameters() -> list[torch.nn.Parameter]:
    """Return parameters in ViT-S/16's shapes, with gradients that are the same on every call."""
    model = timm.create_model("vit_small_patch16_224", pretrained=False, num_classes=100)
    generator = torch_generator("bench_optimizer")
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return list(model.parameters())


def _mask(shape: torch.Size, density: float, index: int) -> Tensor:
    generator = torch_generator("bench_optimizer", "mask", index)
    return torch.rand(shape, generator=generator) < density


def _compare(sgd: Optimizer, sparse: Optimizer, pairs: int) -> dict[str, float]:
    theirs, ours = in_turn([sgd.step, sparse.step], pairs)
    return {
        "sgd_ms": 1000 * statistics.median(theirs),
        "sparse_ms": 1000 * statistics.median(ours),
        "ratio": median_ratio(ours, theirs),
    }


def main() -> None:
    """Print one line per row, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.pairs)
    print(
        f"torch {result['torch']}, {result['threads']} threads, {result['parameters']} parameters"
    )
    print("options         foreach  density  SGD ms  SparseSGDM ms  ratio")
    for row in result["rows"]:
        print(
            f"{row['options']:<15} {row['foreach']!s:<7} {row['density']:>8} "
            f"{row['sgd_ms']:>7.1f} {row['sparse_ms']:>14.1f} {row['ratio']:>6.2f}"
        )
    write(arguments.json, {**facts(), **result})


if __name__ == "__main__":
    main()
