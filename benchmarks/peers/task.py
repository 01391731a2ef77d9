"""A job as everybody gets it: a folder with images, owners and numbers; and what they answer.

A contender is a process of its own: `python -m MODULE FOLDER`. It reads `task.json` and writes
`result.json`. Nothing of fedta but its small networks is imported, so that no setting of an engine
(memory allocation, threads) reaches the bare loop or a peer.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from benchmarks import STARTED


@dataclass(frozen=True)
class Task:
    """FedAvg with SGD: the same numbers for every contender.

    Attributes
    ----------
    data : str
        Folder of `images.npy` (uint8, N x C x H x W), `labels.npy` and `owners.npy`: the client of
        each image.
    mean, std : tuple of float
        Of each channel, in the scale where 255 is 1.
    threads : int
        Of torch, in a process that computes alone.
    """

    data: str
    model: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_clients: int
    clients_per_round: int
    local_steps: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    rounds: int
    threads: int

    def write(self, folder: Path, **more: Any) -> None:
        """Write `task.json`, with what only one contender wants to know."""
        (folder / "task.json").write_text(json.dumps({"task": asdict(self), **more}, indent=1))


def read_task(folder: str | Path) -> Task:
    """Return the task of a contender's folder."""
    return Task(**json.loads((Path(folder) / "task.json").read_text())["task"])


def write_result(folder: str | Path, stamps: list[float], **more: Any) -> None:
    """Answer: `time.time()` when the first round began, and at the end of every round."""
    result = {"started": STARTED, "stamps": stamps, **more}
    (Path(folder) / "result.json").write_text(json.dumps(result))


@dataclass(frozen=True)
class Images:
    """The training images of a task in memory, and whose they are."""

    images: Tensor
    labels: Tensor
    owners: Tensor

    @classmethod
    def of(cls, task: Task) -> "Images":
        """Read the files of the task."""
        names = ("images", "labels", "owners")
        return cls(*(torch.from_numpy(np.load(Path(task.data) / f"{name}.npy")) for name in names))

    def client(self, number: int) -> tuple[Tensor, Tensor]:
        """Return images and labels of a client."""
        mine = self.owners == number
        return self.images[mine], self.labels[mine]


class Normalize(nn.Module):
    """uint8 images to float32 of mean 0 and standard deviation 1."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.mean = 255 * torch.tensor(task.mean)[:, None, None]
        self.std = 255 * torch.tensor(task.std)[:, None, None]

    def forward(self, images: Tensor) -> Tensor:
        """Return the images as a model wants them."""
        return (images.float() - self.mean) / self.std


def new_model(task: Task, images: Images) -> nn.Module:
    """Return the task's network with random weights."""
    channels, size = images.images.shape[1:3]
    if timm.is_model(task.model):
        options: dict[str, Any] = {"num_classes": task.num_classes, "in_chans": channels}
        model: nn.Module = timm.create_model(task.model, img_size=size, **options)
        return model
    from fedta_app.models.architectures import ARCHITECTURES

    return ARCHITECTURES[task.model].build(
        image_size=size, in_channels=channels, num_classes=task.num_classes
    )
