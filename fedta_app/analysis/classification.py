"""What the model of a finished run gets right: by class, and by client.

The data sets have one test set for everybody, and clients differ in their shares of the labels
only. So the accuracy on a client's own images is the accuracy on each class, weighted by the shares
of the classes among the client's training images. That is exact where a client's images of a class
are like anybody's, and needs no split of the test images over the clients.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedta_app.analysis.confusion_figure import save_confusion
from fedta_app.errors import RunError
from fedta_app.files import write_atomically
from fedta_app.finished.reading import Run
from fedta_app.training.datasets import knows_clients
from fedta_app.training.facts import label_counts
from fedta_app.training.steps import predict
from fedta_app.training.workspace import build_workspace

FOLDER = "evaluation"
SPLITS = ("test", "validation")
HOW_CLIENTS = (
    "accuracy on each class, weighted by the client's label shares: exact where clients differ in "
    "their labels only"
)

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def class_accuracy(confusion: Counts) -> Floats:
    """Return the share of each class that was predicted right, (C,); NaN where it has no images.

    Parameters
    ----------
    confusion : int64 array of shape (C, C)
        Images by true class (rows) and predicted class.

    Examples
    --------
    >>> class_accuracy(np.array([[3, 1], [0, 2]]))
    array([0.75, 1.  ])
    """
    return _shares(confusion.diagonal(), confusion.sum(axis=1))


def client_accuracy(accuracy: Floats, counts: Counts) -> Floats:
    """Return the accuracy on the label distribution of each client, (K,).

    Classes whose accuracy is NaN are left out; a client that holds no others gets NaN.

    Parameters
    ----------
    accuracy : float64 array of shape (C,) or (K, C)
        Of one model on each class, or of the model that each client has of its own.
    counts : int64 array of shape (K, C)
        Training images of each client and class.

    Examples
    --------
    >>> client_accuracy(np.array([0.5, 1.0]), np.array([[10, 0], [5, 5]]))
    array([0.5 , 0.75])
    >>> client_accuracy(np.array([[0.9, 0.0], [0.5, 1.0]]), np.array([[10, 0], [5, 5]]))
    array([0.9 , 0.75])
    """
    known = np.where(np.isfinite(accuracy), counts, 0)
    return _shares((known * np.nan_to_num(accuracy)).sum(axis=1), known.sum(axis=1))


def _shares(part: npt.NDArray[Any], whole: Counts) -> Floats:
    """Return part / whole, NaN where the whole is zero."""
    shares: Floats = np.full(len(whole), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model of a run gets right on one of its splits.

    Attributes
    ----------
    run : str
        Name of the run.
    weights : str
        "last" or "best".
    where : str
        Phase and round of the weights.
    split : str
        "test" or "validation".
    loss : float
        Mean cross-entropy.
    confusion : int64 array of shape (C, C)
        Images by true class (rows) and predicted class.
    counts : int64 array of shape (K, C), or None
        Training images of each client and class; None where there were no clients.
    weights_sha256 : str
        Of the weights that were evaluated.
    names : sequence of str
        Of the C classes; without names, their numbers stand for them.
    """

    run: str
    weights: str
    where: str
    split: str
    loss: float
    confusion: Counts
    counts: Counts | None
    weights_sha256: str
    names: Sequence[str] = ()

    @property
    def images(self) -> int:
        """How many images the model was evaluated on."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The share of the images that was predicted right."""
        return int(self.confusion.trace()) / self.images

    @property
    def by_class(self) -> Floats:
        """The accuracy on each class, (C,)."""
        return class_accuracy(self.confusion)

    @property
    def by_client(self) -> Floats | None:
        """The accuracy on the label distribution of each client, (K,); None without clients."""
        return None if self.counts is None else client_accuracy(self.by_class, self.counts)

    def facts(self) -> dict[str, Any]:
        """Return the evaluation in short, as values of JSON."""
        facts: dict[str, Any] = {
            "run": self.run,
            "weights": self.weights,
            "of": self.where,
            "weights-sha256": self.weights_sha256,
            "split": self.split,
            "images": self.images,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "classes": _spread(self.by_class, self.names),
        }
        if self.by_client is not None:
            facts["clients"] = {**_spread(self.by_client), "how": HOW_CLIENTS}
        return facts

    def lines(self) -> list[str]:
        """Return the evaluation in short, as lines of text."""
        on = f"{self.weights} weights ({self.where}) on {self.images} {self.split} images"
        found = [
            f"{on}: accuracy {self.accuracy:.2%}, loss {self.loss:.4f}",
            f"{len(self.confusion)} classes: {_in_words(self.by_class, 'class', self.names)}",
        ]
        names = self.names or range(len(self.confusion))
        wrong = self.confusion - np.diag(self.confusion.diagonal())
        true, predicted = map(int, np.unravel_index(wrong.argmax(), wrong.shape))
        if wrong.any():
            found.append(
                f"most frequent mistake: {wrong.max()} of the {self.confusion[true].sum()} images "
                f"of class {names[true]} are taken for class {names[predicted]}"
            )
        if self.by_client is not None:
            found.append(f"{len(self.by_client)} clients: {_in_words(self.by_client, 'client')}")
            found.append(f"({HOW_CLIENTS})")
        return found

    def save(self, folder: Path) -> Path:
        """Write facts, tables and figure into `<folder>/<weights>-<split>`, and return that."""
        folder = folder / f"{self.weights}-{self.split}"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "summary.json", json.dumps(self.facts(), indent=1) + "\n")
        confusion, right = self.confusion, self.confusion.diagonal()
        classes = zip(
            confusion.sum(axis=1), right, self.by_class, confusion.sum(axis=0), strict=True
        )
        names = self.names or range(len(confusion))
        header = ["class", "images", "right", "accuracy", "predicted"]
        _write_csv(folder / "classes.csv", header, names, classes)
        _write_csv(folder / "confusion.csv", ["class", *names], names, confusion)
        save_confusion(folder / "confusion.png", confusion, f"{self.run}\n{self.lines()[0]}")
        if self.counts is not None and self.by_client is not None:
            held = (self.counts > 0).sum(axis=1)
            clients = zip(self.counts.sum(axis=1), held, self.by_client, strict=True)
            header = ["client", "images", "classes", "accuracy"]
            _write_csv(folder / "clients.csv", header, range(len(held)), clients)
        return folder


def _spread(values: Floats, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return mean and extremes of the values that are known, with where the extremes are."""
    if not np.isfinite(values).any():
        return {"number": len(values)}

    def extreme(of: int) -> dict[str, Any]:
        return {"of": names[of] if names else of, "accuracy": float(values[of])}

    return {
        "number": len(values),
        "mean": float(np.nanmean(values)),
        "lowest": extreme(int(np.nanargmin(values))),
        "highest": extreme(int(np.nanargmax(values))),
    }


def _in_words(values: Floats, what: str, names: Sequence[str] = ()) -> str:
    spread = _spread(values, names)
    if "mean" not in spread:
        return "accuracy unknown"
    ends = (
        f"{end} {spread[end]['accuracy']:.1%} ({what} {spread[end]['of']})"
        for end in ("lowest", "highest")
    )
    return f"mean accuracy {spread['mean']:.1%}, {', '.join(ends)}"


def _write_csv(path: Path, header: Sequence[Any], names: Iterable[Any], rows: Any) -> None:
    """Write rows under a header, each with its name in front; NaN becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for name, row in zip(names, rows, strict=True):
        writer.writerow([name, *("" if value != value else f"{value:.10g}" for value in row)])
    write_atomically(path, text.getvalue())


def evaluate_run(
    run: Run, *, weights: str = "last", split: str = "test", device: str = "", data_dir: str = ""
) -> Evaluation:
    """Return what a finished run's model gets right, on the images that the run measured it on.

    With the last weights and the run's own device, accuracy and loss are the figures of the run's
    last round.

    Parameters
    ----------
    run : Run
        What `fedta_app.finished.reading.load_run` returns.
    weights : {"last", "best"}
        After the last round, or of the round with the highest validation accuracy.
    split : {"test", "validation"}
        The images: a fixed draw of `eval-size`, if the run has that.
    device, data_dir : str
        In place of the run's own.

    Raises
    ------
    RunError
        When the run did not keep such weights, or its data set is another one here.
    ConfigError, DataError
        When the device or the data set is missing.
    """
    if split not in SPLITS:
        raise RunError(f"split = {split!r} is not allowed: split is test or validation")
    kept = run.kept(weights)
    workspace = build_workspace(
        run.config.with_values(
            weights="random",  # all of them are loaded below
            num_clients=run.summary.get("num-clients", 0),
            device=device or run.config.device,
            data_dir=data_dir or run.config.data_dir,
        )
    )
    if workspace.data.digest != kept.facts["data"]["sha256"]:
        raise RunError(
            f"{run.path} was trained on another {run.config.dataset!r} than the one in "
            f"{workspace.config.data_dir}: the sha256 of its images differ"
        )
    workspace.built.model.load_state_dict(kept.tensors)
    images = workspace.evaluation_sets[split == "test"]
    loss, predicted = predict(workspace, images)
    classes = workspace.data.num_classes
    pairs = images.labels.cpu() * classes + predicted.cpu()  # of the true and the predicted class
    return Evaluation(
        run=f"{run.config.name} seed {run.config.seed}",
        weights=weights,
        where=f"{kept.facts['phase']} round {kept.facts['round']}",
        split=split,
        loss=loss,
        confusion=pairs.bincount(minlength=classes**2).view(classes, classes).numpy(),
        counts=label_counts(workspace) if knows_clients(run.config) else None,
        weights_sha256=kept.facts["weights-sha256"],
        # Earlier releases did not keep them, and folders that are renamed are the same images.
        names=kept.facts["model"].get("class-names", workspace.data.class_names),
    )
