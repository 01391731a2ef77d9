"""Tell whether two checkouts compute the same bits.

    python -m benchmarks.harness.same_bits OTHER_CHECKOUT

Small runs on digits cover heads, mask rules, mask scopes, strategies and engines. Each runs in both
checkouts by the command line; what is compared is the sha256 of the final weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_HERE = Path(__file__).resolve().parents[2]
_SMALL = {
    "num-clients": 20, "fraction-train": 0.2, "num-server-rounds": 3, "probe-rounds": 2,
    "calibration-rounds": 2, "calibration-examples": 16, "eval-every": 3, "threads": 1,
    "num-classes-per-client": 2, "partition": "classes", "lr": 0.05, "momentum": 0.9,
    "weight-decay": 0.001, "sparsity": 0.8,
}  # fmt: skip


def cases() -> dict[str, tuple[str, dict[str, object]]]:
    """Return engine and overrides of every run, by name."""
    found: dict[str, tuple[str, dict[str, object]]] = {}

    def add(engine: str, **keys: object) -> None:
        named = {key.replace("_", "-"): value for key, value in keys.items()}
        found["-".join([engine, *map(str, named.values())])] = (engine, named)

    strategies = ("fedavg", "masked-fedavg", "ties", "task-arithmetic")
    for strategy in strategies:
        scale = {"server_scale": 0.3} if strategy == "task-arithmetic" else {}
        add("in-process", head="random", mask_rule="none", strategy=strategy, **scale)
        for rule, scope in (
            ("least-sensitive", "global"), ("least-sensitive", "client"), ("random", "vote"),
            ("agreement", "global"), ("random", "client"),
        ):  # fmt: skip
            add(
                "in-process", head="ridge", mask_rule=rule, mask_scope=scope, strategy=strategy,
                **scale,
            )  # fmt: skip
    for rule in ("most-sensitive", "lowest-magnitude", "highest-magnitude"):
        add("in-process", head="ridge", mask_rule=rule)
    for scope in ("union", "intersection", "server"):
        add("in-process", head="ridge", mask_rule="least-sensitive", mask_scope=scope)
    add("in-process", head="probe", mask_rule="none", strategy="fedavg")
    add("in-process", head="probe", mask_rule="least-sensitive", clip_norm=1.0)
    add("in-process", head="ridge", mask_rule="random", transport="wire")
    add("in-process", head="ridge", mask_rule="least-sensitive", sparsity_scope="layer")
    add("in-process", head="ridge", mask_rule="least-sensitive", strategy="masked-fedavg",
        mask_scope="client", coverage_exponent=0.5)  # fmt: skip
    add("in-process", head="random", mask_rule="none", precision="bf16")
    add("in-process", head="ridge", mask_rule="none", lr_schedule="cosine", local_steps=0)
    for head, rule, scope, strategy in (
        ("random", "none", "global", "fedavg"),
        ("ridge", "least-sensitive", "global", "masked-fedavg"),
        ("ridge", "random", "client", "ties"), ("probe", "agreement", "global", "task-arithmetic"),
    ):  # fmt: skip
        add("flower", head=head, mask_rule=rule, mask_scope=scope, strategy=strategy)
    for head, rule in (("random", "none"), ("ridge", "none"), ("ridge", "least-sensitive")):
        add("centralized", head=head, mask_rule=rule)
    return found


def final_weights(checkout: Path, engine: str, keys: dict[str, object]) -> str:
    """Run one case in a checkout and return the sha256 of its final weights."""
    with tempfile.TemporaryDirectory() as folder:
        preset = "digits/centralized" if engine == "centralized" else "demo/masked"
        values = {**_SMALL, "score-threshold": 0.0, **keys}
        if engine == "centralized":
            values["num-server-rounds"], values["local-steps"] = 3, 5
        pairs = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        command = [sys.executable, "-m", "experiments", "run", preset, "--results-dir", folder]
        command += [] if engine == "centralized" else ["--engine", engine]
        command += [part for pair in pairs for part in ("--set", pair)]
        paths = [str(checkout), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        summaries = list(Path(folder).glob("*/*/seed*/summary.json"))
        if done.returncode or not summaries:
            lines = (done.stdout + done.stderr).strip().splitlines()[-1:]
            return f"status {done.returncode}: {' '.join(lines)}"
        return str(json.loads(summaries[0].read_text())["final-weights-sha256"])


def main() -> int:
    """Compare this checkout with another; exit status 1 where a run differs or fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="of the other version")
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument("--keep", type=Path, help="file of the other version's results, by name")
    options = parser.parse_args()
    known = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else {}
    chosen = {name: case for name, case in cases().items() if options.only in name}

    def both(name: str) -> tuple[str, str, str]:
        engine, keys = chosen[name]
        if name not in known:
            known[name] = final_weights(options.checkout.resolve(), engine, keys)
        return name, known[name], final_weights(_HERE, engine, keys)

    different = 0
    with ThreadPoolExecutor(2) as pool:
        for name, old, new in pool.map(both, chosen):
            same = old == new and not old.startswith("status")
            different += not same
            found = f"same  {new[:12]}" if same else f"DIFFERENT  {old} / {new}"
            print(f"{found}  {name}", flush=True)
    if options.keep:
        options.keep.write_text(json.dumps(known, indent=1))
    print(f"{len(chosen) - different} of {len(chosen)} runs end with the same weights")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
