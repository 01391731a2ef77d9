"""How much the rule "agreement" can change: its divisor beside the range of what it divides.

    python -m experiments.studies.agreement --data-dir DIR

One calibration round of every client, of the presets mask-rules/agreement-nc5 and -nc1 at the small
scale, seed 0; written to results/agreement.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments import RESULTS
from experiments.running.presets import select
from fedta_app.config import RunConfig
from fedta_app.files import write_atomically
from fedta_app.masks.agreement import agreement_scores
from fedta_app.runs.provenance import code_facts
from fedta_app.training.head_fit import fit_head, head_statistics
from fedta_app.training.scoring import client_batches, mask_of_round, scores
from fedta_app.training.workspace import build_workspace

_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def study(config: RunConfig) -> dict[str, Any]:
    """Return quantiles of sensitivities and divisors, and what two masks of a round share."""
    space = build_workspace(config.with_values(calibration_rounds=1))
    assert space.head is not None
    space.head.load(fit_head(space, head_statistics(space, space.head_data(None))).vector)
    size, clients = space.weights.vector.numel(), config.num_clients
    total, sums, squares = (torch.zeros(size, dtype=torch.float64) for _ in range(3))
    for partition_id in range(clients):
        vector = scores(space, client_batches(space, partition_id), None, 1).cpu().double()
        total += vector[:size]
        sums += vector[size:]
        squares += vector[size:].square()
    shared_out = agreement_scores({"_": total}, {"_": sums}, {"_": squares}, clients)["_"]
    least, ours = (
        mask_of_round(space, ranked.float(), None, 1).mask for ranked in (total, shared_out)
    )
    scored = total > 0  # the biases of the keys have none
    return {
        "sensitivity": _quantiles(total[scored]),
        "divisor": _quantiles((total / shared_out)[scored]),
        "share with a divisor of 1": float((total == shared_out)[scored].double().mean()),
        "jaccard with least-sensitive": float((least & ours).sum() / (least | ours).sum()),
    }


def _quantiles(values: Tensor) -> dict[str, float]:
    ordered = values.sort().values
    last = len(ordered) - 1
    return {f"{share:.0%}": float(ordered[round(share * last)]) for share in _QUANTILES}


def main(arguments: list[str] | None = None) -> None:
    """Study both partitions and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True, help="where CIFAR-100 is")
    parser.add_argument("--out", type=Path, default=RESULTS / "agreement.json")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {"code": code_facts()}
    for name in ("agreement-nc5", "agreement-nc1"):
        (preset,) = select(f"mask-rules/{name}", "small")[1]
        folder = str(Path(options.data_dir).expanduser().absolute())
        found[name] = study(preset.config({"data-dir": folder, "seed": 0}))
        print(name, json.dumps(found[name], indent=1), flush=True)
    write_atomically(options.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
