"""The learning rates at which every mask rule's updates are as long as those of dense training.

    python -m experiments.studies.equal_length --scale small --data-dir DIR

A rule that trains insensitive weights takes long steps in them or does nothing. One rate for all
rules therefore compares lengths of updates, and a rate that is tuned for each compares what tuning
found. Here all have the same length: for each place of the table `equal-length`, the mean length
of the updates of round 1 with all weights, at the rate that the table gives them. The rates of the
rules that give this length are written to the table's `tuned-<scale>.toml`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import tomli_w
from torch import Tensor

from experiments.running.presets import Preset, load_table, tuned_paths
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.files import read_toml, write_atomically
from fedta_app.masks import Calibration, rule_named
from fedta_app.runs.provenance import code_facts
from fedta_app.training.client import train_client
from fedta_app.training.head_fit import pooled_head
from fedta_app.training.scoring import calibration, client_batches, scored_positions, scores
from fedta_app.training.shared_masks import shared_mask
from fedta_app.training.workspace import Workspace, build_workspace
from fedta_app.vectors import FlatMask

TABLE, _STEPS = "equal-length", 3


def start_of(config: RunConfig) -> tuple[Workspace, FlatMask | None]:
    """Return the workspace of a run with its ridge head, and its mask."""
    space = build_workspace(config)
    assert space.head is not None
    space.head.load(pooled_head(space, at_start=True).vector)
    return space, None if config.mask_rule == "none" else federated_mask(space)


def federated_mask(space: Workspace) -> FlatMask:
    """Return the mask that the scores of all clients give, as a run finds it."""
    so_far = calibration(space)
    while not so_far.done:
        so_far = _narrowed(space, so_far)
    assert so_far.mask is not None
    return so_far.mask


def _narrowed(space: Workspace, so_far: Calibration) -> Calibration:
    """Return the calibration after one more round, which an earlier run may have done."""
    number, clients = so_far.round + 1, range(len(space.partitions))
    rule = rule_named(space.config.mask_rule)

    def find() -> FlatMask:
        if not rule.needs_scores:
            return so_far.advance()
        return so_far.advance_by(
            scores(space, client_batches(space, client), so_far.mask, number) for client in clients
        )

    positions = (scored_positions(space, client) for client in clients)
    mask = shared_mask(space, positions, number, so_far.mask, find)
    return so_far if so_far.round == number else calibration(space, round=number, mask=mask)


def update_length(space: Workspace, mask: FlatMask | None, start: Tensor, lr: float) -> float:
    """Return the mean length of the updates of the first clients in round 1, at a rate."""
    lengths = []
    for client in range(round(space.config.fraction_train * len(space.partitions))):
        space.weights.load(start)
        sent = start if mask is None else mask.gather(start)
        found = train_client(space, sent, partition_id=client, server_round=1, lr=lr, down=mask)
        lengths.append(float(found.update.norm()))
    space.weights.load(start)
    return sum(lengths) / len(lengths)


def rate_of_length(space: Workspace, mask: FlatMask | None, target: float, lr: float) -> float:
    """Return the rate whose updates have a length: lengths grow nearly in proportion to rates."""
    start = space.weights.vector.clone()
    for _ in range(_STEPS):
        lr *= target / update_length(space, mask, start, lr)
    return float(f"{lr:.3g}")


def find_rates(scale: str, data_dir: str, seed: int) -> None:
    """Find the rates of all rules at all places, and write those of each place as it is done.

    Raises
    ------
    ValueError
        When there is no such scale, or no data.
    """
    folder = str(Path(data_dir).expanduser().absolute())
    places: dict[str, dict[str, Preset]] = {}
    for preset in load_table(TABLE, scale).presets:
        where = preset.coordinates
        places.setdefault(where["place"], {})[where["rule"]] = preset
    path = tuned_paths(TABLE, scale)[-1]
    earlier: dict[str, dict[str, float]] = read_toml(path) if path.exists() else {}
    rates: dict[str, dict[str, float]] = {}
    for rules in places.values():
        target = 0.0
        for rule, preset in rules.items():  # dense comes first
            config = preset.config({"data-dir": folder, "seed": seed})
            space, mask = start_of(config)
            if rule == "dense":
                lr, start = config.lr, space.weights.vector.clone()
                target = update_length(space, None, start, lr)
            else:
                lr = rate_of_length(space, mask, target, config.lr)
            rates[preset.name] = {"lr": lr}
            print(f"{preset.name}: length {target:.4g} at lr = {lr:g}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path,
            _header(seed, sorted(earlier.keys() - rates.keys())) + tomli_w.dumps(earlier | rates),
        )
        print(f"written to {path}")


def _header(seed: int, not_yet: Sequence[str]) -> str:
    """Return the comment above the rates, with the presets whose rates are of an earlier search."""
    before = f"# Not those of {', '.join(not_yet)}, which were there before.\n" if not_yet else ""
    return (
        "# Rates at which updates of round 1 are as long as with dense training, found by\n"
        "# `python -m experiments.studies.equal_length` "
        f"with seed {seed} at {code_facts()['commit']}.\n{before}\n"
    )


def main(arguments: list[str] | None = None) -> None:
    """Find the rates of all rules at all places, and write them beside the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="")
    parser.add_argument("--data-dir", required=True, help="where CIFAR-100 is")
    parser.add_argument("--seed", type=int, default=100)
    options = parser.parse_args(arguments)
    try:
        find_rates(options.scale, options.data_dir, options.seed)
    except (ValueError, RunError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
