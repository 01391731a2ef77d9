"""Pre-train ``vit_cifar`` on CIFAR-10, and write its backbone to a weights file.

``python -m experiments.pretraining.cifar --data-dir DIR --out FILE.safetensors``

Without labels by DINO (`experiments.pretraining.dino`), or with them as a control
(``--method supervised``).
The clients' images are CIFAR-100's, whose classes are disjoint from CIFAR-10's; they are read only
when training is over, to measure what the features are worth. A ViT of 1.8 million parameters after
some epochs on 50,000 images: the recipe of DINO ViT-S/16 in small, not a substitute for it.

Type the same command again after a crash, and it goes on from the last checkpoint, with the same
bits on the same machine. Another ``--epochs`` re-plans the rest of a run that is slower or quicker
than was thought; the file says so. ``--max-minutes`` counts wall clock, so a process that was
paused has less time to train. Exit status: 0 finished, 2 refused, 3 stopped early and resumable.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torchvision.transforms import Normalize

from experiments.exit_status import ExitStatus
from experiments.pretraining.backbone import backbone_state, write_weights
from experiments.pretraining.cifar10 import read_cifar10
from experiments.pretraining.figure import save_curve
from experiments.pretraining.learners import METHODS, new_backbone
from experiments.pretraining.loop import CHECKPOINT, Settings, Training
from experiments.pretraining.probes import embed, knn_accuracy, probe_splits
from fedta_app.data.loading import ImageSet, channel_statistics, load_data
from fedta_app.files import file_sha256, write_atomically

KNN_KNOWN, KNN_ASKED = 10_000, 2_000  # CIFAR-10 images that vote, and test images they classify


def main(arguments: list[str] | None = None) -> ExitStatus:
    """Train, measure, write; return the exit status."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.out.absolute()
    folder = (options.state_dir or out.with_suffix(".state")).absolute()
    try:
        training, neighbours, source = _prepare(options, folder)
    except ValueError as error:  # of data, settings or the checkpoint
        print(error, file=sys.stderr)
        return ExitStatus.REFUSED

    def measure(epoch: int) -> dict[str, float]:
        due = epoch % options.knn_every == 0 or epoch == options.epochs
        return {"knn": neighbours()} if due else {}

    def keep() -> None:
        training.save(folder / CHECKPOINT)
        write_atomically(folder / "curve.csv", pd.DataFrame(training.rows).to_csv(index=False))

    if not training.rows:
        training.rows.append({"step": 0, "epoch": 0.0, **measure(0)})
    done = training.run(
        after_epoch=measure,
        save=keep,
        save_seconds=60 * options.save_minutes,
        max_minutes=options.max_minutes or float("inf"),
    )
    if not done:
        words = sys.argv[1:] if arguments is None else arguments
        typed = shlex.join(["python", "-m", "experiments.pretraining.cifar", *words])
        print(f"stopped after step {training.step} of {training.steps}; to continue: {typed}")
        return ExitStatus.STOPPED
    if "knn" not in training.rows[-1]:  # planned anew, to end where it was
        training.rows[-1] |= measure(options.epochs)
    save_curve(folder / "curve.png", training.rows, f"vit_cifar on CIFAR-10: {options.method}")
    summary = json.dumps(_finish(options, training, source, out), indent=2)
    write_atomically(folder / "summary.json", summary + "\n")
    print(summary)
    return ExitStatus.FINISHED


def _prepare(
    options: argparse.Namespace, folder: Path
) -> tuple[Training, Callable[[], float], str]:
    """Return the training, resumed where it was begun, its k-NN accuracy, and the source of images.

    The second is a function that measures the features as they are when it is called.
    """
    train, held_out, source = read_cifar10(options.data_dir.expanduser())
    mean, std = channel_statistics(train.images)
    digest = hashlib.sha256(train.images.numpy().data).hexdigest()
    images = train.to(torch.device(options.device))
    training = Training(_settings(options), images, Normalize(mean, std), digest)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / CHECKPOINT).exists():
        training.load(folder / CHECKPOINT)
        print(f"going on after step {training.step} of {training.steps}", flush=True)
    sets = [
        _thinned(part, number).to(training.device)
        for part, number in ((train, KNN_KNOWN), (held_out, KNN_ASKED))
    ]

    def neighbours() -> float:
        model = training.learner.result
        with training.autocast():
            known, asked = ((embed(model, part.images, mean, std), part.labels) for part in sets)
        return knn_accuracy(*known, *asked)

    return training, neighbours, source


def _thinned(images: ImageSet, number: int) -> ImageSet:
    """Return about so many images, evenly spaced."""
    return images.subset(torch.arange(0, len(images), max(1, len(images) // number)))


def _finish(
    options: argparse.Namespace, training: Training, source: str, out: Path
) -> dict[str, Any]:
    """Write the weights file, measure what it holds on CIFAR-100, and return the summary."""
    # Half the bytes, and the same features.
    state = backbone_state(training.learner.result, torch.float16)
    splits = load_data("cifar100", options.data_dir, val_size=0.1, seed=0).to(training.device)
    model = new_backbone(splits.num_classes, options.seed).to(training.device)
    floor = probe_splits(model, splits)
    model.load_state_dict(state, strict=False)  # the numbers of the file, not those before rounding
    measured = {f"CIFAR-100, {name}": value for name, value in probe_splits(model, splits).items()}
    measured |= {f"CIFAR-100, {name}, random weights": value for name, value in floor.items()}
    measured["CIFAR-10, 20-nn"] = training.rows[-1]["knn"]
    about = {
        "model": "vit_cifar",
        "method": options.method,
        "note": "a ViT of 1.8 million parameters trained for a short time on CIFAR-10 alone",
        "data": source,
        "settings": training.identity,
        "epochs": options.epochs,
        "plans": training.plans,
        "command": _command(options),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": training.device.type,
        "measured": {name: round(value, 4) for name, value in measured.items()},
    }
    write_weights(out, state, about)
    return {**about, "sha256": file_sha256(out), **training.elapsed()}


def _settings(options: argparse.Namespace) -> Settings:
    given = vars(options) | {"learning_rate": options.lr}
    return Settings(**{key.name: given[key.name] for key in fields(Settings) if key.name in given})


def _command(options: argparse.Namespace) -> str:
    names = ("method", "epochs", "batch_size", "lr", "weight_decay", "precision", "seed", "threads")
    given = (f"--{name.replace('_', '-')} {getattr(options, name)}" for name in names)
    return f"python -m experiments.pretraining.cifar {' '.join(given)}"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--data-dir", type=Path, required=True, help="of CIFAR-10 and CIFAR-100")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--state-dir", type=Path, help="checkpoint and curve; default: beside --out"
    )
    parser.add_argument("--method", choices=METHODS, default="dino")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=7e-4, help="peak learning rate of AdamW")
    parser.add_argument("--weight-decay", type=float, default=0.04)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: torch decides")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max-minutes", type=float, default=0.0, help="0: no limit")
    parser.add_argument("--save-minutes", type=float, default=2.0, help="what a crash may cost")
    parser.add_argument("--knn-every", type=int, default=1, help="epochs from k-NN to k-NN")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
