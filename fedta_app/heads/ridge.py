"""A classification head in closed form: ridge regression from statistics that add up over clients.

Federated ridge regression on the features of a frozen backbone (Fed3R: Fanì et al., "Accelerating
Heterogeneous Federated Learning with Closed-form Classifiers", ICML 2024). The Gram matrix of the
features, the feature sum of each class and the class sizes are sums over examples: added over
clients they are those of the pooled data, so the head is the centralised one however the data are
divided, one class per client included. Each client contributes once; add clients in a fixed order
for the same bits. Float64 throughout: a Gram matrix squares the condition number.

Unlike Fed3R's code the intercept is not penalised (features and targets are centred, as in
scikit-learn's `Ridge`), and the strength may be given relative to the features' variance. Ridge
outputs lie near [0, 1], which makes their softmax almost uniform: one temperature, fitted on
validation data, is folded into the head.

Privacy: what a client's own statistics tell whoever sees them.

- The class sizes, and the non-zero rows of the class sums, are the client's labels.
- A row of the class sums over its class size is a mean feature; for a client of one class, that of
  all its data; for a class of one example, the example's own feature.
- The Gram matrix of n < d examples has rank n and spans exactly their features.

The server needs the sums alone, so secure aggregation (or noise added to the sums) applies as is.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

RELATIVE_RIDGES = tuple(10.0 ** (power / 2) for power in range(-10, 5))
TEMPERATURES = tuple(10.0 ** (power / 20) for power in range(-50, 21))


class RidgeStatistics:
    """Sums over examples from which ridge regression on one-hot targets follows exactly.

    Attributes
    ----------
    gram
        Sum of the outer products of features with themselves, [d, d], exactly symmetric.
    class_sums
        Sum of the features of each class, [C, d].
    class_counts
        Examples of each class, [C].

    All are float64 on the CPU.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        if num_features < 1 or num_classes < 1:
            raise ValueError(
                f"num_features is {num_features} and num_classes {num_classes}; "
                "both must be at least 1."
            )
        self.gram = torch.zeros(num_features, num_features, dtype=torch.float64)
        self.class_sums = torch.zeros(num_classes, num_features, dtype=torch.float64)
        self.class_counts = torch.zeros(num_classes, dtype=torch.float64)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> Self:
        """Add examples in place: features [n, d] of any float type, integer labels [n].

        Raises
        ------
        ValueError
            If the shapes do not fit, a label is not a class, or a feature is not finite.
        """
        num_classes, num_features = self.class_sums.shape
        _check_examples(features, labels, num_features, num_classes)
        examples = features.to("cpu", torch.float64)
        labels = labels.cpu().long()
        upper = (examples.T @ examples).triu()  # a product's two triangles may differ by rounding
        self.gram += upper + upper.triu(1).T
        self.class_sums.index_add_(0, labels, examples)
        self.class_counts += torch.bincount(labels, minlength=num_classes)
        return self

    def __add__(self, other: "RidgeStatistics") -> "RidgeStatistics":
        """Return the statistics of both sets of examples together."""
        if other.class_sums.shape != self.class_sums.shape:
            raise ValueError(
                f"statistics of [classes, features] {tuple(other.class_sums.shape)} cannot be added"
                f" to those of {tuple(self.class_sums.shape)}; the two must be equal."
            )
        total = RidgeStatistics(self.gram.shape[0], len(self.class_counts))
        total.gram = self.gram + other.gram
        total.class_sums = self.class_sums + other.class_sums
        total.class_counts = self.class_counts + other.class_counts
        return total

    @property
    def count(self) -> int:
        """Number of examples."""
        return int(self.class_counts.sum())

    @property
    def feature_sum(self) -> Tensor:
        """Sum of all features, [d]."""
        return self.class_sums.sum(0)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the weight [C, d] and bias [C] that minimise ``error + ridge * |weight|^2``.

        The squared error is summed over examples, targets are 1 for an example's class and 0 for
        the others, and the bias is not penalised. A class without examples gets zeros. With
        ridge 0 and dependent features, the weight of least norm.

        Raises
        ------
        ValueError
            If the ridge is negative or not finite, or there is no example.
        """
        _check_ridges([ridge])
        gram, targets = self._centred()
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram)).double())
        if ridge > 0 and not failed:
            weight = torch.cholesky_solve(targets.T, factor).T
        else:
            weight = self._by_eigenvalues(torch.linalg.eigh(gram), targets, ridge)
        return weight, self._bias(weight)

    def path(self, ridges: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Return what `solve` returns for each ridge, with one eigendecomposition for all."""
        _check_ridges(ridges)
        gram, targets = self._centred()
        decomposition = torch.linalg.eigh(gram)
        weights = [self._by_eigenvalues(decomposition, targets, ridge) for ridge in ridges]
        return [(weight, self._bias(weight)) for weight in weights]

    def scaled(self, relative_ridges: Sequence[float]) -> list[float]:
        """Return the ridges as `solve` takes them: times the mean diagonal of the centred Gram.

        That is the number of examples times the features' mean variance, so that one relative
        ridge means the same for any amount of data and any scale of the features.
        """
        gram, _ = self._centred()
        scale = max(0.0, float(gram.trace())) / len(gram)
        return [relative * scale for relative in relative_ridges]

    def to_vector(self) -> Tensor:
        """Return everything as one float64 vector: d(d+1)/2 + Cd + C numbers, for the wire."""
        rows, columns = torch.triu_indices(*self.gram.shape)
        return torch.cat([self.gram[rows, columns], self.class_sums.reshape(-1), self.class_counts])

    @classmethod
    def from_vector(cls, vector: Tensor, num_features: int, num_classes: int) -> Self:
        """Return the statistics that `to_vector` packed, bit for bit.

        Raises
        ------
        ValueError
            If the vector is not float64 of the length that the two numbers give.
        """
        statistics = cls(num_features, num_classes)
        rows, columns = torch.triu_indices(num_features, num_features)
        sizes = [len(rows), num_classes * num_features, num_classes]
        if vector.dtype != torch.float64 or vector.shape != (sum(sizes),):
            raise ValueError(
                f"vector is {vector.dtype} of shape {tuple(vector.shape)}; {num_features} features "
                f"and {num_classes} classes need torch.float64 ({sum(sizes)},)."
            )
        upper, class_sums, class_counts = torch.split(vector.detach().cpu(), sizes)
        statistics.gram[rows, columns] = upper
        statistics.gram[columns, rows] = upper
        statistics.class_sums.copy_(class_sums.view(num_classes, num_features))
        statistics.class_counts.copy_(class_counts)
        return statistics

    def _centred(self) -> tuple[Tensor, Tensor]:
        """Return the Gram matrix [d, d] and the class sums [C, d] of centred features."""
        if self.count == 0:
            raise ValueError("the statistics hold no example; add some before solving.")
        mean = self.feature_sum / self.count
        gram = self.gram - self.count * torch.outer(mean, mean)
        return gram, self.class_sums - torch.outer(self.class_counts, mean)

    def _by_eigenvalues(
        self, decomposition: tuple[Tensor, Tensor], targets: Tensor, ridge: float
    ) -> Tensor:
        """Return targets (gram + ridge)^-1, [C, d], with no weight where there is no variance."""
        values, vectors = decomposition
        # What centring leaves of a constant feature is rounding of the Gram matrix's own size.
        rounding = len(values) * torch.finfo(values.dtype).eps * float(self.gram.diagonal().max())
        inverse = torch.where(values > rounding, 1 / (values + ridge), 0.0)
        weight: Tensor = (targets @ vectors * inverse) @ vectors.T
        return weight

    def _bias(self, weight: Tensor) -> Tensor:
        return (self.class_counts - weight @ self.feature_sum) / self.count


def select_ridge(
    statistics: RidgeStatistics,
    features: Tensor,
    labels: Tensor,
    candidates: Sequence[float] = RELATIVE_RIDGES,
) -> float:
    """Return the ridge, ready for `solve`, that classifies most validation examples correctly.

    Over clients, with `ridges = statistics.scaled(candidates)`: each returns `correct_counts` of
    `statistics.path(ridges)`, and `best_ridge(ridges, summed counts)` is the same ridge.

    The validation examples are features [n, d] and labels [n]; candidates are relative ridges, see
    `RidgeStatistics.scaled`.

    Raises
    ------
    ValueError
        If there is no candidate, or the examples do not fit.
    """
    ridges = statistics.scaled(candidates)
    return best_ridge(ridges, correct_counts(statistics.path(ridges), features, labels))


@torch.no_grad()
def correct_counts(
    heads: Sequence[tuple[Tensor, Tensor]], features: Tensor, labels: Tensor
) -> Tensor:
    """Return how many examples each head (weight, bias) classifies correctly, int64 [heads]."""
    counts = []
    for weight, bias in heads:
        _check_examples(features, labels, weight.shape[1], len(weight))
        logits = functional.linear(features.to(weight), weight, bias)
        counts.append((logits.argmax(1).cpu() == labels.cpu()).sum())
    return torch.stack(counts) if counts else torch.zeros(0, dtype=torch.int64)


def best_ridge(ridges: Sequence[float], counts: Tensor) -> float:
    """Return the ridge with most correct answers; the largest of equally good ones.

    Raises
    ------
    ValueError
        If there is not one count per ridge, or no ridge.
    """
    if len(ridges) == 0 or counts.shape != (len(ridges),):
        raise ValueError(
            f"counts has shape {tuple(counts.shape)}; it must be ({len(ridges)},), one or more."
        )
    return max(zip(counts.tolist(), ridges, strict=True))[1]


@torch.no_grad()
def temperature_nll(logits: Tensor, labels: Tensor, grid: Sequence[float] = TEMPERATURES) -> Tensor:
    """Return the negative log-likelihood, summed over examples, at each temperature of the grid.

    The sums are float64 [grid] and add up over clients. Logits [n, C] are divided by the
    temperature.

    Raises
    ------
    ValueError
        If the grid is empty or has a temperature that is not positive, or the shapes do not fit.
    """
    _check_temperatures(grid)
    _check_examples(logits, labels, logits.shape[-1], logits.shape[-1])
    logits, labels = logits.to("cpu", torch.float64), labels.cpu().long()
    sums = [functional.cross_entropy(logits / value, labels, reduction="sum") for value in grid]
    return torch.stack(sums)


def fit_temperature(logits: Tensor, labels: Tensor, grid: Sequence[float] = TEMPERATURES) -> float:
    """Return the temperature of the grid that makes the labels most likely (validation data).

    Over clients: sum their `temperature_nll` and take the temperature at the least sum.
    """
    return float(grid[int(temperature_nll(logits, labels, grid).argmin())])


def scale_head(weight: Tensor, bias: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the head whose logits are those of the given one divided by the temperature."""
    _check_temperatures([temperature])
    return weight / temperature, bias / temperature


def _check_examples(rows: Tensor, labels: Tensor, width: int, num_classes: int) -> None:
    """Refuse rows [n, width] and labels [n] that do not fit together."""
    if rows.ndim != 2 or rows.shape[1] != width or labels.shape != rows.shape[:1]:
        raise ValueError(
            f"features and labels have shapes {tuple(rows.shape)} and {tuple(labels.shape)}; "
            f"they must be (n, {width}) and (n,)."
        )
    if not rows.isfinite().all():
        raise ValueError("features contain NaN or infinity; they must be finite.")
    if labels.is_floating_point() or ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"labels must be integers from 0 to {num_classes - 1}.")


def _check_ridges(ridges: Sequence[float]) -> None:
    for ridge in ridges:
        if not 0 <= ridge < math.inf:
            raise ValueError(f"ridge is {ridge}; it must be finite and not negative.")


def _check_temperatures(grid: Sequence[float]) -> None:
    if len(grid) == 0 or not all(0 < temperature < math.inf for temperature in grid):
        raise ValueError(f"temperatures are {list(grid)}; there must be some, all positive.")
