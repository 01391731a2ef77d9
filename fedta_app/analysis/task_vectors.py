"""Task vectors, which are differences between fine-tuned and pretrained weights.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fedta_app.aggregation import apply_update
from fedta_app.vectors import Layout

Inputs = TypeVar("Inputs")
_ATTENTION = re.compile(r"blocks\.\d+\.attn\.")  # the names of a vision transformer of timm


@dataclass(frozen=True, eq=False)
class TaskVector:
    """Fine-tuned minus pretrained weights, with ``+``, ``-``, ``*`` by a number, and ``sum()``.

    Attributes
    ----------
    tensors : Mapping[str, Tensor]
        Floating-point tensors by parameter name. No operation changes them.

    Examples
    --------
    >>> import torch
    >>> from fedta_app.analysis import TaskVector
    >>> pretrained = {"w": torch.tensor([1.0, 2.0, 3.0])}
    >>> finetuned = {"w": torch.tensor([1.5, 2.0, 1.0])}
    >>> task_vector = TaskVector.from_weights(pretrained, finetuned)
    >>> task_vector.flat()
    tensor([ 0.5000,  0.0000, -2.0000])
    >>> task_vector.apply_to(pretrained, scale=0.5)["w"]
    tensor([1.2500, 2.0000, 2.0000])
    >>> forget = -1 * task_vector
    >>> (task_vector + forget).norm()
    0.0
    """

    tensors: Mapping[str, Tensor]

    @classmethod
    @torch.no_grad()
    def from_weights(
        cls, pretrained: Mapping[str, Tensor], finetuned: Mapping[str, Tensor]
    ) -> "TaskVector":
        """Return finetuned - pretrained, without integer tensors such as counters.

        Raises
        ------
        ValueError
            If names or shapes differ.
        """
        _check_fit(pretrained, finetuned)
        start = {name: value for name, value in pretrained.items() if value.is_floating_point()}
        return cls({name: finetuned[name] - value for name, value in start.items()})

    def __add__(self, other: "TaskVector") -> "TaskVector":
        return self._combine(other, 1)

    def __radd__(self, other: int) -> "TaskVector":
        if other != 0:  # sum() starts from 0
            raise ValueError(f"a task vector is added to {other!r}; it must be another task vector")
        return self

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        return self._combine(other, -1)

    def __neg__(self) -> "TaskVector":
        return self * -1.0

    def __mul__(self, scale: float) -> "TaskVector":
        return TaskVector({name: value * scale for name, value in self.tensors.items()})

    __rmul__ = __mul__

    def _combine(self, other: "TaskVector", sign: int) -> "TaskVector":
        _check_fit(self.tensors, other.tensors)
        added = other.tensors
        return TaskVector({n: t.add(added[n], alpha=sign) for n, t in self.tensors.items()})

    def apply_to(self, pretrained: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        """Return new weights ``pretrained + scale * task_vector``.

        Where the task vector is zero, weights keep their bits. Scale 1 gives the fine-tuned weights
        up to rounding.

        Raises
        ------
        ValueError
            If names or shapes differ, integer tensors apart.
        """
        floating = {name: value for name, value in pretrained.items() if value.is_floating_point()}
        _check_fit(floating, self.tensors)
        weights = {name: value.detach().clone() for name, value in pretrained.items()}
        apply_update(weights, self.tensors, scale=scale)
        return weights

    def flat(self) -> Tensor:
        """Return all entries as one vector (N,), in the order of `tensors`."""
        return Layout.of(self.tensors).flatten(self.tensors)

    def norm(self) -> float:
        """Return the Euclidean norm over all entries, accumulated in float64."""
        squares = (float(value.double().square().sum()) for value in self.tensors.values())
        return math.sqrt(sum(squares))


def block_density(mask: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return the trained share by block and kind of layer, in the order of the mask.

    The blocks of a timm vision transformer are ``embed``, ``blocks.0`` ... and ``norm``; kinds are
    ``mlp.fc1``, ``norm1`` (weight and bias together), ``pos_embed`` and so on, with ``attn.q``,
    ``attn.k`` and ``attn.v`` for the parts of the one layer ``attn.qkv``. The blocks of any other
    model are its top-level modules, with the kind ``all``.
    """
    trained: dict[tuple[str, str], int] = {}
    total: dict[tuple[str, str], int] = {}
    is_vit = any(_ATTENTION.match(name) for name in mask)  # the last blocks alone, or all of them
    for name, entry in mask.items():
        whole = ((name.split(".")[0], "all"), entry)
        for place, part in _vit_parts(name, entry) if is_vit else [whole]:
            trained[place] = trained.get(place, 0) + int(part.sum())
            total[place] = total.get(place, 0) + part.numel()
    table: dict[str, dict[str, float]] = {}
    for (block, kind), size in total.items():
        table.setdefault(block, {})[kind] = trained[block, kind] / max(1, size)
    return table


def disentanglement_error(
    predict: Callable[[Mapping[str, Tensor], Inputs], Tensor],
    pretrained: Mapping[str, Tensor],
    vectors: Sequence[TaskVector],
    alphas: Sequence[float],
    task_inputs: Sequence[Inputs],
) -> float:
    """Return the weight disentanglement error at one choice of coefficients.

    Ortiz-Jimenez et al., "Task Arithmetic in the Tangent Space", NeurIPS 2023, arXiv 2305.12827,
    with disagreement of predicted classes as the distance::

        xi(a) = sum_t mean_{x in task t} [f(x; w + a_t v_t) != f(x; w + sum_s a_s v_s)]

    Parameters
    ----------
    predict : callable
        ``predict(weights, inputs)`` returns logits of shape (examples, classes).
    pretrained : Mapping[str, Tensor]
        The weights w.
    vectors, alphas, task_inputs : sequences
        One task vector v_t, coefficient a_t and set of inputs for each task.

    Returns
    -------
    float
        Between 0 (the tasks do not interfere) and the number of tasks.

    Raises
    ------
    ValueError
        If the sequences differ in length or are empty, or the vectors do not fit the weights.
    """
    if not len(vectors) == len(alphas) == len(task_inputs) > 0:
        raise ValueError(
            f"there are {len(vectors)} vectors, {len(alphas)} alphas, {len(task_inputs)} "
            "task_inputs; each task needs one of each, and there must be a task"
        )
    scaled = [vector * alpha for vector, alpha in zip(vectors, alphas, strict=True)]
    merged = sum(scaled[1:], scaled[0]).apply_to(pretrained)
    error = 0.0
    for vector, inputs in zip(scaled, task_inputs, strict=True):
        alone = predict(vector.apply_to(pretrained), inputs).argmax(dim=-1)
        together = predict(merged, inputs).argmax(dim=-1)
        error += float((alone != together).double().mean())
    return error


def _vit_parts(name: str, entry: Tensor) -> list[tuple[tuple[str, str], Tensor]]:
    """Return block, kind and entries of each part of a parameter; only ``attn.qkv`` has several."""
    parts = name.split(".")
    if parts[0] == "blocks":
        block, kind = ".".join(parts[:2]), ".".join(parts[2:-1])
        if kind == "attn.qkv":  # rows of queries, then of keys, then of values
            return [
                ((block, f"attn.{which}"), third)
                for which, third in zip("qkv", entry.chunk(3), strict=True)
            ]
        return [((block, kind), entry)]
    if parts[0] in ("cls_token", "reg_token", "pos_embed", "patch_embed"):
        return [(("embed", parts[0]), entry)]
    return [((parts[0], parts[0]), entry)]


def _check_fit(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise ValueError(f"weights differ in their names, at {odd[0]!r}; all must share them")
    for name, value in first.items():
        if second[name].shape != value.shape:
            raise ValueError(
                f"{name!r} has shape {tuple(second[name].shape)}; it must be {tuple(value.shape)}"
            )
