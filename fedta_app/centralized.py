"""The centralised baseline: the phases of a run without a federation.

The same model, data and step as a client's, on all training images. A round is `local-steps` steps,
or one epoch where that is 0; the optimizer keeps its momentum from round to round, as a client's
does not. Head and mask are made from the training images.
"""

import time
from typing import Any

import torch
from torch import Tensor

from fedta_app.config import RunConfig
from fedta_app.runs.directory import check_loss
from fedta_app.runs.loop import Phase, RoundLoop, check_keys
from fedta_app.runs.metrics import Figures, Row
from fedta_app.runs.session import RunSession
from fedta_app.training.evaluation import check_above_chance, measure
from fedta_app.training.head_fit import fit_head, head_statistics
from fedta_app.training.schedule import learning_rate
from fedta_app.training.scoring import own_mask
from fedta_app.training.steps import make_optimizer, train_steps
from fedta_app.training.workspace import Workspace, run_facts, shared_workspace
from fedta_app.vectors.flat import weights_sha256
from fedta_app.vectors.mask import FlatMask


def run_centralized(config: RunConfig) -> None:
    """Train from the start, or from the last checkpoint, to the last round."""
    workspace = shared_workspace(config)
    try:
        baseline = Baseline(workspace)
        phases = make_phases(baseline)
        session = RunSession(
            config,
            total_steps=sum(phase.num_rounds for phase in phases) - 1,
            facts=run_facts(workspace),
            notes=baseline.notes,
        )
        with session.recording_failure():
            RoundLoop(phases, {"baseline": baseline}, session, baseline.sha256).run()
    finally:
        shared_workspace.cache_clear()


def make_phases(baseline: "Baseline") -> list[Phase]:
    """Return the phases of the configuration, in their order."""
    config = baseline.workspace.config
    phases: list[Phase] = [Head(baseline)] if config.head != "random" else []
    if config.mask_rule != "none":
        phases.append(Calibrate(baseline))
    return [*phases, Start(baseline), Train(baseline)]


class Baseline:
    """What the baseline keeps between rounds: weights, head, mask and momentum.

    Attributes
    ----------
    notes : dict
        What summary.json says of head and mask.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.optimizer = make_optimizer(workspace.config, workspace.model)
        self.mask: FlatMask | None = None
        self.notes: dict[str, Any] = {}

    def use_mask(self, mask: FlatMask) -> None:
        """Train only the entries of the mask from now on."""
        self.mask = mask
        self.optimizer.set_masks(self.workspace.weights.views(mask.mask))
        trained, entries = mask.num_trained, mask.mask.numel()
        self.notes["mask"] = {"density": mask.density, "trained": trained, "of": entries}

    def measure(self, *, last: bool = False) -> Figures:
        """Measure the model as it is."""
        return measure(self.workspace, self.workspace.weights.vector, last=last)

    def sha256(self) -> str:
        """Return the sha256 of all weights, the head's behind the others where it is frozen."""
        head = [self.workspace.head.vector.cpu()] if self.workspace.head else []
        return weights_sha256(torch.cat([self.workspace.weights.vector.cpu(), *head]))

    def state_dict(self) -> dict[str, Any]:
        """Return weights, head, mask (as bytes of bits) and the momentum of each parameter."""
        head, mask = self.workspace.head, self.mask
        return {
            "weights": self.workspace.weights.vector,
            "head": head.vector if head else None,
            "mask": torch.frombuffer(bytearray(mask.to_bits()), dtype=torch.uint8)
            if mask
            else None,
            "momentum": self._momentum(),
            "notes": self.notes,
        }

    def _momentum(self) -> dict[str, Tensor]:
        buffers = {
            name: self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            for name, parameter in self.workspace.model.named_parameters()
        }
        return {name: buffer for name, buffer in buffers.items() if buffer is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        check_keys(state, ("weights", "head", "mask", "momentum", "notes"), "baseline")
        weights = self.workspace.weights
        weights.load(state["weights"])
        if self.workspace.head:
            self.workspace.head.load(state["head"])
        if state["mask"] is not None:
            bits, size = state["mask"].numpy().tobytes(), weights.vector.numel()
            self.use_mask(FlatMask.from_bits(bits, size, weights.vector.device))
        for name, buffer in state["momentum"].items():
            parameter = self.workspace.model.get_parameter(name)
            self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)
        self.notes.update(state["notes"])


class _BaselinePhase(Phase):
    """A phase of the baseline, of one round unless it says otherwise."""

    def __init__(self, baseline: Baseline, num_rounds: int = 1) -> None:
        super().__init__(num_rounds)
        self.baseline = baseline
        self.workspace = baseline.workspace


class Head(_BaselinePhase):
    """The ridge head, from the features of all training images."""

    name = "head"

    def run_round(self, number: int) -> Row:
        """Solve for the head and freeze it."""
        began = time.perf_counter()
        workspace = self.workspace
        fitted = fit_head(workspace, head_statistics(workspace, workspace.head_data(None)))
        assert workspace.head is not None
        workspace.head.load(fitted.vector)
        self.baseline.notes["head"] = {
            "kind": "ridge", "ridge": fitted.ridge, "temperature": fitted.temperature
        }  # fmt: skip
        return Row(number, self.name, seconds=round(time.perf_counter() - began, 4))


class Calibrate(_BaselinePhase):
    """The mask, calibrated in all its rounds on the training images."""

    name = "calibrate"

    def run_round(self, number: int) -> Row:
        """Find the mask."""
        began = time.perf_counter()
        self.baseline.use_mask(own_mask(self.workspace, None))
        return Row(number, self.name, seconds=round(time.perf_counter() - began, 4))


class Start(_BaselinePhase):
    """Round 0: the model before training is measured; one at chance is not worth the rest."""

    name = "start"

    def run_round(self, number: int) -> Row:
        """Measure the model, head and all."""
        figures = self.baseline.measure()
        if self.workspace.head:
            check_above_chance(self.workspace, figures["val_accuracy"])
        return Row(0, self.name, **figures)


class Train(_BaselinePhase):
    """SGD with momentum on all images."""

    name = "train"

    def __init__(self, baseline: Baseline) -> None:
        super().__init__(baseline, baseline.workspace.config.num_server_rounds)

    def run_round(self, number: int) -> Row:
        """Train one round and measure it when that is due."""
        began = time.perf_counter()
        workspace, optimizer = self.workspace, self.baseline.optimizer
        lr = learning_rate(workspace.config, number)
        with optimizer.skip_frozen_tensors():
            loss = train_steps(workspace, optimizer, workspace.data.train, lr=lr, key=(number,))
        check_loss(loss, number)
        seconds = round(time.perf_counter() - began, 4)
        last = number == self.num_rounds
        due = last or number % workspace.config.eval_every == 0
        figures = self.baseline.measure(last=last) if due else Figures()
        return Row(number, self.name, train_loss=loss, seconds=seconds, **figures)
