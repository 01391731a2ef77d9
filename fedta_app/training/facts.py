"""What a run says of itself in summary.json."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedta_app.data.folder import FOLDER
from fedta_app.pace.schedule import schedule_warning
from fedta_app.partition.schemes import class_counts
from fedta_app.runs.provenance import device_name
from fedta_app.training.workspace import Workspace


def run_facts(workspace: Workspace) -> dict[str, Any]:
    """Return what summary.json says of weights, data and device.

    The entries under "identity" must be the same when a run is resumed.
    """
    source = workspace.built.source
    return {
        "identity": {
            "data-sha256": workspace.data.digest,
            "weights-file-sha256": source.sha256,
            "parameters-sha256": workspace.weights.fingerprint,
        },
        "data": _images(workspace) | {"note": workspace.data.note},
        "weights": {"kind": source.kind, "from": source.location, "pretrained": source.pretrained},
        "model": _network(workspace),
        "device": device_name(workspace.device),
        "kernels": workspace.kernels,
        "precision": workspace.precision,
        "trained-blocks": workspace.config.trained_blocks or "all",
        "warnings": [
            *filter(None, [*workspace.built.warnings, schedule_warning(workspace.config)])
        ],
    }


def model_facts(workspace: Workspace) -> dict[str, Any]:
    """Return what the file of a model says of it: how it is built, its data and its start."""
    config, source = workspace.config, workspace.built.source
    path = Path(source.location)
    names = list(workspace.data.class_names)
    facts: dict[str, Any] = {
        "model": _network(workspace) | ({"class-names": names} if names else {}),
        "data": {"sha256": workspace.data.digest} | _images(workspace),
        "start": {
            "kind": source.kind,
            "from": path.name if path.is_absolute() else source.location,
            "sha256": source.sha256,
        },
    }
    return facts if config.engine == "centralized" else facts | {"num-clients": config.num_clients}


def label_counts(workspace: Workspace) -> npt.NDArray[np.int64]:
    """Return how many training images of each class the clients hold, (K, C)."""
    labels = workspace.data.train.labels.cpu().numpy()
    return class_counts(labels, workspace.partitions, workspace.data.num_classes)


def _images(workspace: Workspace) -> dict[str, Any]:
    """Return the name of the data set, and how many of its images are trained or measured on."""
    config, data = workspace.config, workspace.data
    # Not asked of `evaluation_sets`, which take long where frozen blocks have to make them.
    validation, test = (
        min(len(split), config.eval_size or len(split)) for split in (data.val, data.test)
    )
    return {
        "name": Path(config.image_folder).name if data.name == FOLDER else data.name,
        "training-images": len(data.train),
        "validation-images": validation,
        "test-images": test,
    }


def _network(workspace: Workspace) -> dict[str, Any]:
    """Return what has to be known to build the model again and to feed it.

    The channels of text are the characters of a window.
    """
    mean, std = workspace.normalisation
    alphabet = workspace.data.alphabet
    return {
        "name": workspace.config.model,
        "classes": workspace.data.num_classes,
        "channels": workspace.data.train.images.shape[1],
        "image-size": workspace.built.image_size,
        "mean": list(mean),
        "std": list(std),
    } | ({"alphabet": alphabet} if alphabet else {})
