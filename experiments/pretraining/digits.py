"""Pre-train ``vit_digits`` on printed letters, and write its backbone to a weights file.

``python -m experiments.pretraining.digits --out fedta_app/weights/vit_digits.safetensors``

The clients of the demo hold handwritten digits (scikit-learn's); the letters of
`experiments.pretraining.letters` are disjoint from them by construction. Real digits are read
only when training is over, to measure what the features are worth. One thread, seeded: two runs on
one machine write the same file.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from experiments.pretraining.backbone import backbone_state, write_weights
from experiments.pretraining.letters import CLASSES, FONTS, HELD_OUT_FONTS, distort, draw_glyphs
from experiments.pretraining.probes import accuracy
from fedta_app.errors import ConfigError
from fedta_app.files import as_folder
from fedta_app.models.building import build_model, features
from fedta_app.seeding import derive_seed, torch_generator

BATCH_SIZE = 256
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
WARMUP = 100  # steps
TRAIN_DIGITS = 1200  # of 1797, to fit the probes that are only measured


def pretrain(seed: int, steps: int) -> tuple[nn.Module, float]:
    """Train ``vit_digits`` to tell letters apart, each batch drawn afresh.

    Parameters
    ----------
    seed : int
    steps : int
        AdamW steps, on a cosine schedule with warm-up.

    Returns
    -------
    Module, float
        The trained model, and its accuracy on letters of `HELD_OUT_FONTS`.
    """
    glyphs, labels = draw_glyphs(tuple(font for font in FONTS if font not in HELD_OUT_FONTS))
    model = build_model(
        "vit_digits", weights="random", image_size=8, num_classes=len(CLASSES), in_channels=1,
        seed=seed,
    ).model  # fmt: skip
    normalise = _normaliser(distort(glyphs, torch_generator(seed, "letters", "statistics")))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = torch_generator(seed, "letters", "train")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _learning_rate_share(step, steps)
        chosen = torch.randint(len(glyphs), (BATCH_SIZE,), generator=generator)
        logits = model(normalise(distort(glyphs[chosen], generator)))
        loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    return model.eval(), _letter_accuracy(model, normalise, seed)


def _learning_rate_share(step: int, steps: int) -> float:
    """Return the share of the learning rate: a linear warm-up, then a cosine to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP)))


def _normaliser(images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return uint8 -> standardised float32, with the mean and deviation of these images."""
    scaled = images.float() / 255
    mean, std = scaled.mean(), scaled.std()
    return lambda batch: (batch.float() / 255 - mean) / std


@torch.no_grad()
def _letter_accuracy(
    model: nn.Module, normalise: Callable[[Tensor], Tensor], seed: int, copies: int = 20
) -> float:
    glyphs, labels = draw_glyphs(HELD_OUT_FONTS)
    images = distort(glyphs.repeat(copies, 1, 1, 1), torch_generator(seed, "letters", "test"))
    predicted = model(normalise(images)).argmax(dim=1)
    return float((predicted == labels.repeat(copies)).float().mean())


@torch.no_grad()
def probe_digits(model: nn.Module) -> dict[str, float]:
    """Measure frozen features on real digits: fit on 1200 of them, test on the other 597.

    Returns
    -------
    dict of str to float
        Accuracy of a ridge classifier and of 5 nearest neighbours.
    """
    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    order = np.random.default_rng(derive_seed(0, "digits", "probe")).permutation(len(images))
    train, test = order[:TRAIN_DIGITS], order[TRAIN_DIGITS:]
    seen = features(model, _normaliser(images[train])(images))
    probes = {"ridge": RidgeClassifier(), "5-nn": KNeighborsClassifier(5)}
    return {
        name: accuracy(probe, seen[train], labels[train], seen[test], labels[test])
        for name, probe in probes.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps {options.steps} is not allowed: it is at least 1")
    try:  # before the training, whose weights would be lost
        as_folder(options.out.parent, f"--out {options.out}").mkdir(parents=True, exist_ok=True)
    except (ConfigError, OSError) as error:
        parser.error(f"--out {options.out} cannot be written ({error})")
    torch.set_num_threads(1)  # sums depend on the number of threads
    model, letters = pretrain(options.seed, options.steps)
    measured = {"letters, held-out fonts": letters}
    measured |= {f"digits, {name}": value for name, value in probe_digits(model).items()}
    about = {
        "model": "vit_digits",
        "data": f"letters A-Z and a-z drawn with {len(FONTS)} fonts of matplotlib; no digits",
        "held-out fonts": ", ".join(HELD_OUT_FONTS),
        "command": "python -m experiments.pretraining.digits "
        f"--seed {options.seed} --steps {options.steps}",
        "torch": torch.__version__,
        "threads": "1",
        "measured": {name: round(value, 4) for name, value in measured.items()},
    }
    write_weights(options.out, backbone_state(model, torch.float32), about)
    print(json.dumps(measured, indent=2))
    print(f"wrote {options.out.resolve()}")


if __name__ == "__main__":
    main()
