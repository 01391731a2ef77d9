"""A training run that can stop at any step and go on to the same bits: DINO, or with labels."""

import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.transforms import Normalize

from experiments.pretraining.dino import DinoOptions
from experiments.pretraining.learners import new_learner
from fedta_app.data.loading import ImageSet
from fedta_app.files import write_atomically
from fedta_app.seeding import torch_generator

ROW_STEPS = 50  # the curve has a row for so many steps, of their mean loss
WARMUP = 0.1  # share of the steps
CLIP_NORM = 3.0
CHECKPOINT = "checkpoint.pt"


class ResumeError(ValueError):
    """A checkpoint that is not one of this run; the message is one sentence for the user."""


@dataclass(frozen=True)
class Settings:
    """What decides the trained weights, beside the images.

    A resumed run must have the same, but for the epochs: with another number of them, it goes on
    with the learning rate of the new plan, and `Training.plans` tells.

    Attributes
    ----------
    method : str
        One of `experiments.pretraining.learners.METHODS`.
    epochs, batch_size : int
        Whole batches only; the learning rate follows the planned number of steps.
    learning_rate, weight_decay : float
        Of AdamW; biases, normalisations, tokens and position embeddings do not decay.
    precision : str
        "bf16" or "fp32", of the forward pass.
    seed : int
    dino : DinoOptions
    """

    method: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    precision: str
    seed: int
    dino: DinoOptions = field(default_factory=DinoOptions)


def learning_rate_share(progress: float) -> float:
    """Return the share of the learning rate: a linear warm-up, then a cosine to zero."""
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


class Training:
    """The run: learner, optimizer, steps done and the curve so far.

    Images and crops of a step are drawn from generators keyed by seed and step, so a resume needs
    no state of a generator.

    Parameters
    ----------
    settings : Settings
    train : ImageSet
        On the device to train on.
    normalise : Normalize
        What standardises the channels of images in [0, 1].
    digest : str
        Of the images; a checkpoint made with other ones is refused.
    """

    def __init__(
        self, settings: Settings, train: ImageSet, normalise: Normalize, digest: str
    ) -> None:
        self.settings, self.train = settings, train
        self.identity = asdict(settings) | {"images": digest}
        del self.identity["epochs"]
        self.plans = [[0, settings.epochs]]  # from which step on, how many epochs were planned
        self.device = train.images.device
        self.steps_per_epoch = len(train) // settings.batch_size
        self.steps = settings.epochs * self.steps_per_epoch
        if not self.steps:
            raise ValueError(f"there is no whole batch in {len(train)} images, or no epoch")
        classes = int(train.labels.max()) + 1
        self.learner = new_learner(
            settings.method, classes, normalise, seed=settings.seed, options=settings.dino
        )
        self.learner.to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.learner, settings.weight_decay), settings.learning_rate
        )
        self.step = 0
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._seconds = {"minutes": 0.0, "cpu_minutes": 0.0}  # of earlier processes
        self._started = {"minutes": time.monotonic(), "cpu_minutes": time.process_time()}

    def autocast(self) -> torch.autocast:
        """Return the precision of the forward pass."""
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def elapsed(self) -> dict[str, float]:
        """Return minutes of wall clock (pauses count) and of CPU time (of all threads)."""
        now = {"minutes": time.monotonic(), "cpu_minutes": time.process_time()}
        return {name: (self._seconds[name] + now[name] - self._started[name]) / 60 for name in now}

    def run(
        self,
        *,
        after_epoch: Callable[[int], dict[str, float]],
        save: Callable[[], None],
        save_seconds: float = 120.0,
        max_minutes: float = math.inf,
    ) -> bool:
        """Train until the planned steps are done, or for so many minutes of wall clock.

        Parameters
        ----------
        after_epoch : callable
            Receives the number of the epoch that ended; figures that it returns join the curve.
        save : callable
            Called every `save_seconds`, and at the end.
        save_seconds, max_minutes : float
            Wall clock: a process that was paused saves, or stops, at its next step. At least one
            step is taken.

        Returns
        -------
        bool
            Whether all steps are done.
        """
        started = saved = time.monotonic()
        while self.step < self.steps:
            self._train_step()
            epoch_ends = self.step % self.steps_per_epoch == 0
            if self.step % ROW_STEPS == 0 or epoch_ends:
                figures = after_epoch(self.step // self.steps_per_epoch) if epoch_ends else {}
                print(self._end_row(figures), flush=True)
            if time.monotonic() - saved >= save_seconds:
                save()
                saved = time.monotonic()
            if time.monotonic() - started >= 60 * max_minutes:
                break  # after a step: the same command again and again gets to the end
        save()
        return self.step == self.steps

    def _train_step(self) -> None:
        settings, progress = self.settings, self.step / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_share((self.step + 1) / self.steps)
        epoch, batch = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(
            len(self.train), generator=torch_generator(settings.seed, "pretrain", "order", epoch)
        )
        chosen = order[batch * settings.batch_size :][: settings.batch_size].to(self.device)
        crops = torch_generator(settings.seed, "pretrain", "crops", self.step)
        with self.autocast():
            loss, figures = self.learner(
                self.train.images[chosen], self.train.labels[chosen], crops
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.learner.before_step(progress)
        nn.utils.clip_grad_norm_(self.learner.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.step += 1
        self.learner.after_step(self.step / self.steps)
        for name, value in {"loss": loss.item(), **figures, "steps": 1}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _end_row(self, figures: dict[str, float]) -> str:
        steps = self._sums.pop("steps")
        means = {name: total / steps for name, total in self._sums.items()}
        self._sums = {}
        row = {
            "step": self.step,
            "epoch": round(self.step / self.steps_per_epoch, 3),
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        self.rows.append({**row, **means, **self.elapsed(), **figures})
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(f"the loss is not finite after {self.step} steps")
        return ", ".join(f"{name} {value:.4g}" for name, value in self.rows[-1].items())

    def save(self, path: Path) -> None:
        """Write everything that a resume needs; the file is the old version or the new one."""
        state = {
            "identity": self.identity,
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "plans": self.plans,
            "rows": self.rows,
            "sums": self._sums,
            "seconds": {name: 60 * minutes for name, minutes in self.elapsed().items()},
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        """Go on where a checkpoint of the same settings and images was written.

        Raises
        ------
        ResumeError
            If it cannot be read as tensors and numbers alone, or belongs to another run.
        """
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            identity = state["identity"]
        except Exception as error:  # whatever a corrupt file makes torch raise
            raise ResumeError(f"{path} is no checkpoint ({type(error).__name__})") from error
        differing = [name for name in self.identity if identity.get(name) != self.identity[name]]
        if differing:
            raise ResumeError(
                f"{path} belongs to a run with other {', '.join(differing)}: delete it, or name "
                "another --state-dir"
            )
        if state["step"] > self.steps:
            raise ResumeError(f"{path} has more than {self.settings.epochs} epochs behind it")
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.rows, self._sums = state["step"], state["rows"], state["sums"]
        self._seconds, self.plans = state["seconds"], state["plans"]
        if self.plans[-1][1] != self.settings.epochs:
            self.plans.append([self.step, self.settings.epochs])


def _parameter_groups(learner: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    decays = {
        name: p.ndim > 1 and not name.endswith(("_token", "_embed")) for name, p in trained.items()
    }
    return [
        {"params": [p for n, p in trained.items() if decays[n]], "weight_decay": weight_decay},
        {"params": [p for n, p in trained.items() if not decays[n]], "weight_decay": 0.0},
    ]
