"""A round of the last blocks behind cached tokens, beside the whole network and a bare loop.

    python -m benchmarks.bench_blocks [--model NAME] [--image-size 56] [--blocks 3] [--rounds 3]
                                      [--threads 1] [--json FILE]

Three things in turn, in one process: a round of fedta's clients that train the last blocks from
cached tokens; the same round of the whole network; and a bare PyTorch loop over the same last
blocks, which keeps its tokens too, with torch.optim.SGD, clipping and a mean of the updates. The
round is that of scale `small`: 10 clients, 16 steps of 8 images. The images are digits, enlarged.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.pairs import in_turn, median_ratio
from benchmarks.harness.report import facts, write
from fedta_app.aggregation.accumulators import MeanAccumulator
from fedta_app.config import RunConfig
from fedta_app.training.client import train_client
from fedta_app.training.workspace import Workspace, build_workspace

CLIENTS, MOMENTUM, CLIP, RATE = 10, 0.9, 1.0, 0.003
_ROUND = {
    "dataset": "digits", "weights": "random", "num-clients": CLIENTS, "partition": "iid",
    "local-steps": 16, "batch-size": 8, "momentum": MOMENTUM, "clip-norm": CLIP, "augment": False,
    "precision": "fp32", "head": "ridge", "cache-dir": "", "val-size": 0.05,
}  # fmt: skip


def fedta_round(workspace: Workspace, start: Tensor, server_round: int) -> Tensor:
    """Return the mean update (N,) of the clients of a round."""
    mean = MeanAccumulator()
    for client in range(CLIENTS):
        found = train_client(
            workspace, start, partition_id=client, server_round=server_round, lr=RATE
        )
        mean.add(found.update, found.num_examples)
    return mean.result()


class BareLoop:
    """The same round in plain PyTorch, from the same tokens."""

    def __init__(self, workspace: Workspace) -> None:
        self._model, self._steps = workspace.model, workspace.config.local_steps
        self._size = workspace.config.batch_size
        self._data = [workspace.client_data(client) for client in range(CLIENTS)]
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._trained]

    def __call__(self) -> list[Tensor]:
        """Return the mean update of the clients, by parameter."""
        sums = [torch.zeros_like(p) for p in self._trained]
        self._model.train()
        for data in self._data:
            with torch.no_grad():
                for parameter, start in zip(self._trained, self._start, strict=True):
                    parameter.copy_(start)
            optimizer = torch.optim.SGD(self._trained, lr=RATE, momentum=MOMENTUM)
            order = torch.randperm(len(data))
            for step in range(self._steps):
                batch = order[step * self._size : (step + 1) * self._size]
                optimizer.zero_grad()
                logits = self._model(data.images[batch])
                nn.functional.cross_entropy(logits, data.labels[batch]).backward()
                nn.utils.clip_grad_norm_(self._trained, CLIP)
                optimizer.step()
            with torch.no_grad():
                for total, now, start in zip(sums, self._trained, self._start, strict=True):
                    total.add_(now - start, alpha=1 / CLIENTS)
        return sums


def main(arguments: list[str] | None = None) -> None:
    """Print the two ratios, and write the JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_small_patch14_dinov2.lvd142m")
    parser.add_argument("--image-size", type=int, default=56)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    shared: dict[str, Any] = {
        **_ROUND, "model": options.model, "image-size": options.image_size,
        "threads": options.threads,
    }  # fmt: skip
    last = build_workspace(RunConfig.from_mapping({**shared, "trained-blocks": options.blocks}))
    whole = build_workspace(RunConfig.from_mapping(shared))
    print(f"computing the tokens of {len(last.data.train):,} images", flush=True)
    last.plain  # noqa: B018  (computes them, which no round does)
    bare = BareLoop(last)
    starts = {id(space): space.weights.vector.clone() for space in (last, whole)}
    runs: dict[str, Callable[[], object]] = {
        "last blocks": lambda: fedta_round(last, starts[id(last)], 1),
        "whole network": lambda: fedta_round(whole, starts[id(whole)], 1),
        "bare loop over the last blocks": bare,
    }
    times = dict(zip(runs, in_turn(list(runs.values()), options.rounds), strict=True))
    ours = times["last blocks"]
    rows = []
    for name, found in times.items():
        ratio = median_ratio(ours, found)
        rows.append({"what": name, "seconds": found, "last blocks by this": ratio})
        print(f"{name:<32} {statistics.median(found):7.2f} s; last blocks: {ratio:5.2f} x this")
    asked = {key: getattr(options, key) for key in ("model", "image_size", "blocks", "threads")}
    write(options.json, {**facts(), **asked, "rows": rows})


if __name__ == "__main__":
    main()
