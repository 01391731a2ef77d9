"""A classification head in closed form: ridge regression from sums that add up over clients.

Fed3R (Fanì et al., "Accelerating Heterogeneous Federated Learning with Closed-form Classifiers",
ICML 2024): the Gram matrix of the features, the feature sum of each class and the class sizes are
sums over examples, so their sums over clients are those of the pooled data, and the head is the
centralised one for every partition. All sums are float64, because a Gram matrix squares the
condition number. For equal bits, add the clients in a fixed order.

Two things differ from Fed3R's code. The intercept is not penalised: features and targets are
centred, as in scikit-learn's `Ridge`. And since ridge outputs lie near [0, 1], where their softmax
is almost uniform, the head is divided by a temperature that is fitted on validation data.

Privacy: what a client's own statistics reveal to those who see them.

- The class sizes, and the non-zero rows of the class sums, are the client's labels.
- A row of the class sums over its class size is a mean feature; for a client of one class, that of
  all its data; for a class of one example, the example's own feature.
- The Gram matrix of n < d examples has rank n and spans exactly their features.

The server needs the sums only, so secure aggregation, or noise added to the sums, can be used.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

RELATIVE_RIDGES: tuple[float, ...] = tuple(10.0 ** (power / 2) for power in range(-10, 5))
TEMPERATURES: tuple[float, ...] = tuple(10.0 ** (power / 20) for power in range(-50, 21))


class RidgeStatistics:
    """Sums over examples that determine the ridge regression on one-hot targets.

    Attributes
    ----------
    gram : float64 Tensor of shape (d, d)
        Sum of the outer products of features with themselves, exactly symmetric.
    class_sums : float64 Tensor of shape (C, d)
        Sum of the features of each class.
    class_counts : float64 Tensor of shape (C,)
        Number of examples of each class.

    Examples
    --------
    Two clients with one class each get the head of their pooled data:

    >>> import torch
    >>> from fedta_app.heads import RidgeStatistics
    >>> features = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, 1.0], [2.0, 3.0]])
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> one = RidgeStatistics(num_features=2, num_classes=2).add(features[:2], labels[:2])
    >>> other = RidgeStatistics(num_features=2, num_classes=2).add(features[2:], labels[2:])
    >>> weight, bias = (one + other).solve(ridge=0.1)
    >>> (features.double() @ weight.T + bias).argmax(1)
    tensor([0, 0, 1, 1])
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        if num_features < 1 or num_classes < 1:
            raise ValueError(
                f"num_features is {num_features} and num_classes is {num_classes}; "
                "both must be at least 1"
            )
        self.gram = torch.zeros(num_features, num_features, dtype=torch.float64)
        self.class_sums = torch.zeros(num_classes, num_features, dtype=torch.float64)
        self.class_counts = torch.zeros(num_classes, dtype=torch.float64)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> Self:
        """Add features (n, d) of any float type with integer labels (n,) in place; return self.

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
                f"statistics with class_sums of shape {tuple(other.class_sums.shape)} cannot be "
                f"added to those of shape {tuple(self.class_sums.shape)}; the two must be equal"
            )
        total = RidgeStatistics(self.gram.shape[0], len(self.class_counts))
        total.gram = self.gram + other.gram
        total.class_sums = self.class_sums + other.class_sums
        total.class_counts = self.class_counts + other.class_counts
        return total

    def scaled(self, factor: float) -> "RidgeStatistics":
        """Return the statistics in which every example counts `factor` times, above 0."""
        total = RidgeStatistics(self.gram.shape[0], len(self.class_counts))
        total.gram = factor * self.gram
        total.class_sums = factor * self.class_sums
        total.class_counts = factor * self.class_counts
        return total

    @property
    def count(self) -> int:
        """Number of examples."""
        return int(self._weight)

    @property
    def _weight(self) -> float:
        """Sum of the weights of the examples, which are 1 unless they were scaled."""
        return float(self.class_counts.sum())

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the weight (C, d) and bias (C,) that minimise ``error + ridge * |weight|^2``.

        The squared error is summed over examples; targets are 1 for an example's class and 0 for
        the others. A class without examples gets zeros. Ridge 0 gives the weight of least norm
        where features are linearly dependent.

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
            weight = self._by_eigenvalues(_decomposed(gram), targets, ridge)
        return weight, self._bias(weight)

    def path(self, ridges: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Return what `solve` returns for each ridge, with one eigendecomposition for all."""
        _check_ridges(ridges)
        gram, targets = self._centred()
        decomposition = _decomposed(gram)
        weights = [self._by_eigenvalues(decomposition, targets, ridge) for ridge in ridges]
        return [(weight, self._bias(weight)) for weight in weights]

    def scale(self) -> float:
        """Return the mean diagonal entry of the centred Gram matrix.

        This is the number of examples times the mean variance of the features. A ridge in units of
        it means the same for any amount of data and any scale of the features.
        """
        gram, _ = self._centred()
        return max(0.0, float(gram.trace())) / len(gram)

    def to_vector(self) -> Tensor:
        """Return all sums as one float64 vector of d(d+1)/2 + Cd + C numbers, for a message."""
        rows, columns = torch.triu_indices(*self.gram.shape)
        return torch.cat([self.gram[rows, columns], self.class_sums.reshape(-1), self.class_counts])

    @classmethod
    def from_vector(cls, vector: Tensor, num_features: int, num_classes: int) -> Self:
        """Return the statistics that `to_vector` packed, bit for bit.

        Raises
        ------
        ValueError
            If the vector is not float64, or its length does not fit the two numbers.
        """
        statistics = cls(num_features, num_classes)
        rows, columns = torch.triu_indices(num_features, num_features)
        sizes = [len(rows), num_classes * num_features, num_classes]
        if vector.dtype != torch.float64 or vector.shape != (sum(sizes),):
            raise ValueError(
                f"vector is {vector.dtype} of shape {tuple(vector.shape)}; {num_features} features "
                f"and {num_classes} classes need torch.float64 of shape ({sum(sizes)},)"
            )
        upper, class_sums, class_counts = torch.split(vector.detach().cpu(), sizes)
        statistics.gram[rows, columns] = upper
        statistics.gram[columns, rows] = upper
        statistics.class_sums.copy_(class_sums.view(num_classes, num_features))
        statistics.class_counts.copy_(class_counts)
        return statistics

    def _centred(self) -> tuple[Tensor, Tensor]:
        """Return the Gram matrix (d, d) and the class sums (C, d) of the centred features."""
        if self._weight == 0:
            raise ValueError("the statistics hold no examples; add some before solving")
        mean = self.class_sums.sum(0) / self._weight
        gram = self.gram - self._weight * torch.outer(mean, mean)
        return gram, self.class_sums - torch.outer(self.class_counts, mean)

    def _by_eigenvalues(
        self, decomposition: tuple[Tensor, Tensor], targets: Tensor, ridge: float
    ) -> Tensor:
        """Return targets (gram + ridge I)^-1, (C, d), zero along directions without variance."""
        values, vectors = decomposition
        # Centring a constant feature leaves a rounding error in proportion to the Gram matrix.
        rounding = len(values) * torch.finfo(values.dtype).eps * float(self.gram.diagonal().max())
        inverse = torch.where(values > rounding, 1 / (values + ridge), 0.0)
        weight: Tensor = (targets @ vectors * inverse) @ vectors.T
        return weight

    def _bias(self, weight: Tensor) -> Tensor:
        return (self.class_counts - weight @ self.class_sums.sum(0)) / self._weight


def _decomposed(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of a symmetric matrix of any size of entries.

    Where all features are nearly constant, only rounding is left in their centred Gram matrix, and
    LAPACK fails to converge on such small numbers. A power of two changes no bit of others.
    """
    power = 2.0 ** math.frexp(float(gram.abs().max()))[1]
    values, vectors = torch.linalg.eigh(gram / power)
    return values * power, vectors


@torch.no_grad()
def select_ridge(statistics: RidgeStatistics, features: Tensor, labels: Tensor) -> float:
    """Return the ridge that classifies most validation examples correctly, the largest of equals.

    The candidates are `RELATIVE_RIDGES` times `RidgeStatistics.scale`; the validation examples are
    features (n, d) with labels (n,).

    Raises
    ------
    ValueError
        If the examples do not fit the statistics.
    """
    num_classes, num_features = statistics.class_sums.shape
    _check_examples(features, labels, num_features, num_classes)
    scale = statistics.scale()
    ridges = [relative * scale for relative in RELATIVE_RIDGES]
    correct = []
    for weight, bias in statistics.path(ridges):
        predicted = functional.linear(features.to(weight), weight, bias).argmax(1)
        correct.append(int((predicted == labels.cpu()).sum()))
    return max(zip(correct, ridges, strict=True))[1]


@torch.no_grad()
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature of `TEMPERATURES` that makes the labels (n,) most likely.

    The logits (n, C) are divided by it; use validation data.

    Raises
    ------
    ValueError
        If the shapes do not fit, a label is not a class, or a logit is not finite.
    """
    _check_examples(logits, labels, logits.shape[-1], logits.shape[-1])
    logits, labels = logits.to("cpu", torch.float64), labels.cpu().long()
    losses = [functional.cross_entropy(logits / t, labels, reduction="sum") for t in TEMPERATURES]
    return TEMPERATURES[int(torch.stack(losses).argmin())]


def _check_examples(rows: Tensor, labels: Tensor, width: int, num_classes: int) -> None:
    """Raise ValueError for rows and labels other than (n, width) and (n,), or invalid values."""
    if rows.ndim != 2 or rows.shape[1] != width or labels.shape != rows.shape[:1]:
        raise ValueError(
            f"features and labels have shapes {tuple(rows.shape)} and {tuple(labels.shape)}; "
            f"they must be (n, {width}) and (n,)"
        )
    if not rows.isfinite().all():
        raise ValueError("features contain NaN or infinity; they must be finite")
    if labels.is_floating_point() or ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(f"labels must be integers from 0 to {num_classes - 1}")


def _check_ridges(ridges: Sequence[float]) -> None:
    for ridge in ridges:
        if not 0 <= ridge < math.inf:
            raise ValueError(f"ridge is {ridge}; it must be finite and not negative")
