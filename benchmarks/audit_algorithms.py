r"""Algorithms against client drift on quadratics, beside rules that public implementations use.

    python -m benchmarks.audit_algorithms [--rounds 200] [--json FILE] [--figure FILE]

Six clients have quadratic losses with other optima and curvatures, all of them train in each round,
and the optimum of their mean loss is known. An algorithm that corrects drift reaches it; FedAvg
stays away, because clients take several steps towards their own optima. Every curve is the distance
to the optimum. The faulty rules are stated again in our own words, a few lines each; the module
that each was seen in is named in docs/public-implementations.md.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.harness.quadratics import Server, clients, optimum
from benchmarks.harness.report import facts, write
from fedta_app.algorithms.base import Algorithm, Correction, LocalRule, Vectors
from fedta_app.algorithms.feddyn import FedDyn
from fedta_app.algorithms.fedprox import FedProx
from fedta_app.algorithms.scaffold import Scaffold

CLIENTS, SIZE, STEPS, RATE = 6, 5, 8, 0.02
MOMENTA = (0.0, 0.9)
FAR = 1e3  # a curve ends where the weights are further away than this


# --- rules that public implementations use in place of the paper's


@dataclass(frozen=True)
class SignReversed(Scaffold):
    """SCAFFOLD that subtracts the server's control and adds the client's."""

    name: ClassVar[str] = ""

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Return the paper's rule with the other sign."""
        rule = super().local(start, received, memory)
        if rule.correction is not None and rule.correction.shift is not None:
            rule.correction = Correction(shift=-rule.correction.shift)
        return rule


@dataclass(frozen=True)
class ControlsNeverKept(Scaffold):
    """SCAFFOLD whose clients compute a new control and forget it, so that it is always zero."""

    name: ClassVar[str] = ""

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Return the paper's rule for a client without a memory."""
        return super().local(start, received, {})


class _UnitPull(LocalRule):
    """The gradient of the distance to the global weights, where FedProx has that of its square."""

    def __init__(self, pull: float, start: Tensor) -> None:
        self._pull, self._start = pull, start

    def change(self, gradient: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient with a pull of unit length towards the start."""
        away = weights - self._start
        unit: Tensor = away / away.norm().clamp(min=1e-12)
        return gradient + self._pull * unit


@dataclass(frozen=True)
class NormNotSquared(FedProx):
    """FedProx with the penalty mu |w - x| in place of mu/2 |w - x|^2."""

    name: ClassVar[str] = ""

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Return the rule with a pull of unit length."""
        return _UnitPull(self.pull, start)


class _PlainSteps(LocalRule):
    """Steps without the penalty, whose gradient is kept all the same."""

    def __init__(self, rule: LocalRule) -> None:
        self._rule = rule

    def finish(self, update: Tensor, steps: int, lr: float) -> tuple[Vectors, Vectors]:
        """Keep what the rule with the penalty keeps."""
        return self._rule.finish(update, steps, lr)


@dataclass(frozen=True)
class PenaltyWithoutGradient(FedDyn):
    """FedDyn whose penalty is computed from detached weights, so that steps are plain SGD."""

    name: ClassVar[str] = ""

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Return the paper's rule without its effect on the steps."""
        return _PlainSteps(super().local(start, received, memory))


class Quadratics(Server):
    """The server of the tests, which also lets a rule change gradients in ways fedta has not."""

    def corrected(self, rule: LocalRule, gradient: Tensor, weights: Tensor) -> Tensor:
        """Return the gradient that a client steps along."""
        if isinstance(rule, _UnitPull):
            return rule.change(gradient, weights)
        return super().corrected(rule, gradient, weights)


Make = Callable[[float], Algorithm]
OURS: dict[str, Make] = {
    "FedAvg": lambda momentum: Algorithm(),
    "FedProx": lambda momentum: FedProx(pull=1.0),
    "SCAFFOLD": lambda momentum: Scaffold(num_clients=CLIENTS, momentum=momentum),
    "FedDyn": lambda momentum: FedDyn(num_clients=CLIENTS, pull=1.0),
}
THEIRS: dict[str, Make] = {
    "FedProx, norm not squared": lambda momentum: NormNotSquared(pull=1.0),
    "SCAFFOLD, sign reversed": lambda momentum: SignReversed(
        num_clients=CLIENTS, momentum=momentum
    ),
    "SCAFFOLD, controls never kept": lambda momentum: ControlsNeverKept(
        num_clients=CLIENTS, momentum=momentum
    ),
    # It differs from the paper where there is momentum.
    "SCAFFOLD, divided by steps": lambda momentum: Scaffold(num_clients=CLIENTS, momentum=0.0),
    "FedDyn, penalty without gradient": lambda momentum: PenaltyWithoutGradient(
        num_clients=CLIENTS, pull=1.0
    ),
}


def distances(algorithm: Algorithm, momentum: float, rounds: int) -> list[float]:
    """Return the distance to the optimum after each round, until it exceeds `FAR`."""
    those = [replace(client, num_examples=1) for client in clients(CLIENTS, SIZE)]
    # With momentum a step counts up to 1 / (1 - momentum) times.
    lr = RATE * (1 - momentum)
    start = torch.zeros(SIZE, dtype=torch.float64)
    server = Quadratics(algorithm, those, start, steps=STEPS, lr=lr, momentum=momentum)
    best, found = optimum(those), []
    for chosen in [range(CLIENTS)] * rounds:
        server.run_round(chosen)
        found.append(float((server.weights - best).norm()))
        if not found[-1] < FAR:
            break
    return found


def _width(label: str) -> float:
    """Return a line's width: FedAvg lies below FedProx, which is close to it."""
    return 4.0 if label == "FedAvg" else 1.6 if label in OURS else 1.0


def save_curves(path: Path, curves: dict[float, dict[str, list[float]]]) -> None:
    """Save the curves: a panel for each momentum, ours as lines and faulty rules dashed."""
    colours = {
        "FedAvg": "#7f7f7f",
        "FedProx": "#c8781e",
        "SCAFFOLD": "#20639b",
        "FedDyn": "#3c8d5a",
    }
    style: dict[Any, Any] = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(curves), sharey=True)
        for axes, (momentum, those) in zip(panels, curves.items(), strict=True):
            for number, (label, values) in enumerate(those.items()):
                family = label.partition(",")[0]
                line = (
                    "-" if label in OURS else ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))[number % 4]
                )
                axes.semilogy(
                    range(1, len(values) + 1), values, label=label, color=colours[family],
                    linestyle=line, linewidth=_width(label),
                )  # fmt: skip
            axes.set_title(f"momentum {momentum:g}", loc="left", fontsize=8)
            axes.set_xlabel("round")
            axes.set_ylim(1e-13, FAR)
        panels[0].set_ylabel("distance to the optimum")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=7)
        figure.savefig(path, dpi=200)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print where each curve ends, and write the figure and the JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args(arguments)
    curves: dict[float, dict[str, list[float]]] = {}
    for momentum in MOMENTA:
        curves[momentum] = {
            label: distances(make(momentum), momentum, options.rounds)
            for label, make in {**OURS, **THEIRS}.items()
        }
        for label, values in curves[momentum].items():
            end = f"{values[-1]:.1e}" if values[-1] < FAR else f"diverged in round {len(values)}"
            print(f"momentum {momentum:g}  {label:33} {end}")
    if options.figure:
        save_curves(options.figure, curves)
    write(options.json, {**facts(), "curves": {f"{m:g}": those for m, those in curves.items()}})


if __name__ == "__main__":
    main()
