"""The centralised baseline: the phases of a run without a federation.

Model, data and optimizer step are those of a client, on all training images; for large batches the
optimizer may be another (`fedta_app.optim.large_batch`). A round is
`local-steps` steps, or one epoch where that is 0. Unlike a client's, the optimizer keeps its
momentum from round to round. Head and mask are made from the training images.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch

from fedta_app.config import RunConfig
from fedta_app.optim.large_batch import (
    large_batch_optimizer,
    load_optimizer_state,
    optimizer_state,
)
from fedta_app.optim.sparse_sgdm import SparseSGDM
from fedta_app.pace.schedule import learning_rate
from fedta_app.runs.finished_model import ModelKeeper
from fedta_app.runs.loop import Phase, RoundLoop, check_keys, check_tensor, diverged
from fedta_app.runs.metrics import Figures, Row
from fedta_app.runs.session import RunSession
from fedta_app.training.evaluation import Start, measure, measured_when_due
from fedta_app.training.facts import model_facts, run_facts
from fedta_app.training.head_fit import NOT_FINITE, longest_feature, pooled_head
from fedta_app.training.scoring import own_mask
from fedta_app.training.steps import make_optimizer, train_steps
from fedta_app.training.workspace import Workspace, shared_workspace
from fedta_app.vectors.flat import weights_sha256
from fedta_app.vectors.mask import FlatMask


def run_centralized(config: RunConfig) -> None:
    """Run a centralised training to its end, from its last checkpoint if there is one."""
    workspace = shared_workspace(config, None)
    try:
        baseline = Baseline(workspace)
        phases = make_phases(baseline)
        session = RunSession(
            config,
            total_rows=sum(phase.num_rounds for phase in phases),
            facts=run_facts(workspace),
            notes=baseline.notes,
        )
        with session.recording_failure():
            keeper = ModelKeeper(session, lambda: workspace.built.model, model_facts(workspace))
            RoundLoop(phases, {"baseline": baseline}, session, keeper, baseline.sha256).run()
    finally:
        shared_workspace.cache_clear()


def make_phases(baseline: "Baseline") -> list[Phase]:
    """Return the phases that the configuration asks for, in their order."""
    config = baseline.workspace.config
    phases: list[Phase] = [Head(baseline)] if config.head != "random" else []
    if config.mask_rule != "none":
        phases.append(Calibrate(baseline))
    return [*phases, Start(baseline.workspace, baseline.measure), Train(baseline)]


class Baseline:
    """The state of the baseline between rounds: weights, head, mask and momentum.

    Attributes
    ----------
    notes : dict
        What summary.json says of the head and the mask.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.optimizer = _make_optimizer(workspace)
        self.mask: FlatMask | None = None
        self._mask_bits = b""
        self.notes: dict[str, Any] = {}

    def solve_head(self, *, at_start: bool = False) -> None:
        """Solve the ridge head over all training images under the weights of now, and freeze it."""
        workspace = self.workspace
        fitted = pooled_head(workspace, at_start=at_start)
        assert workspace.head is not None
        workspace.head.load(fitted.vector)
        self.notes["head"] = fitted.facts()

    def use_mask(self, mask: FlatMask) -> None:
        """Train only the entries of the mask from now on."""
        self.mask, self._mask_bits = mask, mask.to_bits()
        assert isinstance(self.optimizer, SparseSGDM), "other optimizers are refused with a mask"
        self.optimizer.set_masks(self.workspace.weights.views(mask.mask))
        trained, entries = mask.num_trained, mask.mask.numel()
        self.notes["mask"] = {"density": mask.density, "trained": trained, "of": entries}

    def measure(self, *, last: bool = False, at_start: bool = False) -> Figures:
        """Measure the model as it is."""
        weights = self.workspace.weights.vector
        return measure(self.workspace, weights, last=last, at_start=at_start)

    def sha256(self) -> str:
        """Return the sha256 of all weights; those of a frozen head come last."""
        head = [self.workspace.head.vector.cpu()] if self.workspace.head else []
        return weights_sha256(torch.cat([self.workspace.weights.vector.cpu(), *head]))

    def state_dict(self) -> dict[str, Any]:
        """Return weights, head, mask (as bits), momentum by parameter, and notes."""
        head = self.workspace.head
        return {
            "weights": self.workspace.weights.vector,
            "head": head.vector if head else None,
            "mask": torch.frombuffer(bytearray(self._mask_bits), dtype=torch.uint8)
            if self.mask
            else None,
            "momentum": self._momentum(),
            "notes": self.notes,
        }

    def _momentum(self) -> dict[str, Any]:
        if not isinstance(self.optimizer, SparseSGDM):
            return optimizer_state(self.optimizer)
        buffers = {
            name: self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            for name, parameter in self.workspace.model.named_parameters()
        }
        return {name: buffer for name, buffer in buffers.items() if buffer is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        check_keys(state, ("weights", "head", "mask", "momentum", "notes"), "baseline")
        weights, head = self.workspace.weights, self.workspace.head
        weights.load(check_tensor(state["weights"], weights.vector, "weights"))
        if head:
            head.load(check_tensor(state["head"], head.vector, "head's weights"))
        if state["mask"] is not None:
            bits, size = state["mask"].numpy().tobytes(), weights.vector.numel()
            self.use_mask(FlatMask.from_bits(bits, size, weights.vector.device))
        if not isinstance(self.optimizer, SparseSGDM):
            load_optimizer_state(self.optimizer, state["momentum"])
        else:
            for name, buffer in state["momentum"].items():
                parameter = self.workspace.model.get_parameter(name)
                check_tensor(buffer, parameter, "momenta")
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)
        self.notes.update(state["notes"])


def _make_optimizer(workspace: Workspace) -> torch.optim.Optimizer:
    """Return the optimizer of the configuration over the parameters that require a gradient."""
    config = workspace.config
    if config.optimizer == "sgd":
        return make_optimizer(config, workspace.model)
    return large_batch_optimizer(
        config.optimizer,
        [parameter for parameter in workspace.model.parameters() if parameter.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


class _BaselinePhase(Phase):
    """A phase that changes the baseline, in one round unless it says otherwise."""

    def __init__(self, baseline: Baseline, num_rounds: int = 1) -> None:
        super().__init__(num_rounds)
        self.baseline = baseline
        self.workspace = baseline.workspace


class Head(_BaselinePhase):
    """The ridge head, from the features of all training images."""

    name = "head"

    def work(self, number: int) -> None:
        """Solve for the head and freeze it."""
        self.baseline.solve_head(at_start=True)


class Calibrate(_BaselinePhase):
    """The mask, calibrated in all its rounds on the training images."""

    name = "calibrate"

    def work(self, number: int) -> None:
        """Find the mask."""
        self.baseline.use_mask(own_mask(self.workspace, None))


class Train(_BaselinePhase):
    """Steps of the optimizer on all training images."""

    name = "train"

    def __init__(self, baseline: Baseline) -> None:
        super().__init__(baseline, baseline.workspace.config.num_server_rounds)

    def work(self, number: int) -> float:
        """Train for one round and return the mean loss."""
        workspace, optimizer = self.workspace, self.baseline.optimizer
        lr = learning_rate(workspace.config, number)
        sparse = optimizer if isinstance(optimizer, SparseSGDM) else None
        with sparse.skip_frozen_tensors() if sparse else nullcontext():
            loss = train_steps(workspace, optimizer, workspace.train_images, lr=lr, key=(number,))
        if workspace.config.head_refresh and number % workspace.config.head_refresh == 0:
            if not math.isfinite(longest_feature(workspace)):
                raise diverged(number, NOT_FINITE)
            self.baseline.solve_head()
        return loss

    def run_round(self, number: int) -> Row:
        """Train for one round, and measure the model when that is due."""
        row = super().run_round(number)
        return measured_when_due(row, self.workspace.config, self.baseline.measure)
