"""The jobs that contenders do: a preset of ours, as a configuration and as a task for the peers."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.task import Task
from experiments.running.presets import select
from fedta_app.config import RunConfig
from fedta_app.data.loading import DataSplits, load_data
from fedta_app.partition.schemes import partition

# What every job shares: no measurements and checkpoints between the rounds that are timed, and
# nothing that not every contender has.
_SHARED: dict[str, Any] = {
    "weights": "random",
    "head": "random",
    "augment": False,
    "clip-norm": 0.0,
    "lr-schedule": "constant",
    "precision": "fp32",
    "eval-every": 10_000,
    "eval-size": 10,
    "checkpoint-every": 10_000,
    "keep-model": "none",
    "device": "cpu",
}
# A mask costs nothing to find here, and little the head that it needs.
_MASKED: dict[str, Any] = {
    "head": "probe",
    "probe-rounds": 1,
    "mask-rule": "random",
    "strategy": "masked-fedavg",
}


@dataclass(frozen=True)
class Job:
    """A preset, and what differs.

    Attributes
    ----------
    threads : int
        Of torch; 0 for all cores. Several actors share them.
    """

    preset: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 0

    def values(self, *, density: float = 1.0, actors: int = 1) -> dict[str, Any]:
        """Return the configuration of a run, but for where data and results are."""
        _, (preset,) = select(self.preset)
        mask = {**_MASKED, "sparsity": round(1 - density, 6)} if density < 1 else {}
        threads = {"threads": max(1, self.num_threads // actors)}
        return {"name": "bench", **preset.values, **_SHARED, **self.changes, **mask, **threads}

    @property
    def num_threads(self) -> int:
        """Threads of a contender that computes in one process."""
        return self.threads or os.cpu_count() or 1


VIT_SMALL: dict[str, Any] = {"image-size": 32, "batch-size": 8, "lr": 0.01}
JOBS = {
    "vit_small": Job("fedavg-iid/c0.1", VIT_SMALL),
    "demo": Job("demo/fedavg", threads=1),
    "cifar100": Job("small/fedavg-iid", {"batch-size": 8}, threads=1),
}


@dataclass(frozen=True)
class Prepared:
    """A job whose data lie in a folder, ready for contenders.

    Attributes
    ----------
    smallest : int
        Images of the client that has the fewest.
    """

    job: Job
    task: Task
    places: dict[str, str]
    smallest: int

    def config(self, *, density: float, actors: int, rounds: int) -> dict[str, Any]:
        """Return the configuration for one of our engines."""
        values = self.job.values(density=density, actors=actors)
        return {**values, **self.places, "num-server-rounds": rounds}


@contextmanager
def prepared(job: Job, data_dir: str) -> Iterator[Prepared]:
    """Lay out a job's images for the peers; noise takes CIFAR-100's place where it is not there."""
    config = RunConfig.from_mapping({**job.values(), "data-dir": data_dir})
    data = load(config.dataset, data_dir, config)
    labels = data.train.labels.numpy()
    owners = np.zeros(len(labels), dtype=np.int64)
    clients = partition(
        labels,
        config.num_clients,
        scheme=config.partition,
        num_classes_per_client=config.num_classes_per_client,
        seed=config.seed,
    )
    for number, positions in enumerate(clients):
        owners[positions] = number
    with tempfile.TemporaryDirectory(prefix="fedta-bench-") as folder:
        arrays = {"images": data.train.images.numpy(), "labels": labels, "owners": owners}
        for key, array in arrays.items():
            np.save(Path(folder) / f"{key}.npy", array)
        task = Task(
            data=folder,
            model=config.model,
            num_classes=data.num_classes,
            mean=data.mean,
            std=data.std,
            num_clients=config.num_clients,
            clients_per_round=max(1, round(config.fraction_train * config.num_clients)),
            local_steps=config.local_steps,
            batch_size=config.batch_size,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            rounds=0,
            threads=job.num_threads,
        )
        yield Prepared(
            job, task, {"dataset": data.name, "data-dir": data_dir}, min(map(len, clients))
        )


def set_words(values: Mapping[str, Any]) -> list[str]:
    """Return a configuration as words of `experiments run`.

    Examples
    --------
    >>> set_words({"head": "ridge", "augment": False})
    ['--set', 'head="ridge"', '--set', 'augment=false']
    """
    texts = {key: json.dumps(value) for key, value in values.items()}  # TOML takes them too
    return [word for key, text in texts.items() for word in ("--set", f"{key}={text}")]


def load(dataset: str, data_dir: str, config: RunConfig) -> DataSplits:
    """Load a data set; noise takes CIFAR-100's place where that is not: nothing is downloaded."""
    folder = Path(data_dir).expanduser()
    files = (folder / "cifar-100-python", folder / "cifar-100-python.tar.gz")
    if dataset == "cifar100" and not any(file.exists() for file in files):
        dataset = "synthetic"
    return load_data(dataset, data_dir, val_size=config.val_size, seed=config.seed)
