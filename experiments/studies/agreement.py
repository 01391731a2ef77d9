"""How much the rule "agreement" can change: its divisor beside the range of what it divides.

    python -m experiments.studies.agreement --data-dir DIR

One calibration round of every client, of the presets mask-rules/agreement-nc5-frozen and
-nc1-frozen at the small scale, seed 0; written to results/agreement.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments import RESULTS
from experiments.running.presets import select
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.files import write_atomically
from fedta_app.masks.rules.agreement import AgreementSums
from fedta_app.runs.provenance import code_facts
from fedta_app.training.head_fit import pooled_head
from fedta_app.training.scoring import calibration, client_batches, scores
from fedta_app.training.workspace import build_workspace

_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def study(config: RunConfig) -> dict[str, Any]:
    """Return quantiles of sensitivities and divisors, and what two masks of a round share."""
    space = build_workspace(config.with_values(calibration_rounds=1))
    assert space.head is not None
    space.head.load(pooled_head(space).vector)
    sums = AgreementSums(space.weights.layout.size)
    for partition_id in range(config.num_clients):
        sums.add(scores(space, client_batches(space, partition_id), None, 1))
    total, shared_out = sums.sensitivities, sums.scores()
    least, ours = (
        calibration(space).advance(ranked.float()).mask for ranked in (total, shared_out)
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
    folder = str(Path(options.data_dir).expanduser().absolute())
    try:
        for name in ("agreement-nc5-frozen", "agreement-nc1-frozen"):
            (preset,) = select(f"mask-rules/{name}", "small")[1]
            found[name] = study(preset.config({"data-dir": folder, "seed": 0}))
            print(name, json.dumps(found[name], indent=1), flush=True)
    except (ValueError, RunError) as error:
        parser.error(str(error))
    write_atomically(options.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
