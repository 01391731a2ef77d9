"""The centralised baseline: the same model, data and step as a client's, on all the images at once.

A round is `local-steps` steps, or one epoch where that is 0; the optimizer keeps its momentum from
round to round, as a client's does not. Head and mask are made from the training images.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedta_app.client_memory import forget_run
from fedta_app.config import RunConfig
from fedta_app.runs.directory import check_loss
from fedta_app.runs.metrics import Figures, Row
from fedta_app.runs.session import RunSession, State, run_facts
from fedta_app.training.evaluation import check_above_chance, measure
from fedta_app.training.head_fit import fit_head, head_statistics
from fedta_app.training.schedule import learning_rate
from fedta_app.training.scoring import own_mask
from fedta_app.training.steps import make_optimizer, train_steps
from fedta_app.training.workspace import Workspace, shared_workspace
from fedta_app.vectors.flat import weights_sha256
from fedta_app.vectors.mask import FlatMask


def run_centralized(config: RunConfig) -> None:
    """Train from the start, or from the last checkpoint, to the last round."""
    workspace = shared_workspace(config)
    notes: dict[str, Any] = {}
    session = RunSession(
        config,
        total_steps=config.num_server_rounds + len(_preparations(config)),
        facts=run_facts(workspace),
        notes=notes,
    )
    try:
        CentralizedRun(workspace, session, notes).run()
    except BaseException as error:
        session.fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        forget_run()


def _preparations(config: RunConfig) -> list[str]:
    head = ["head"] if config.head != "random" else []
    return [*head, "calibrate"] if config.mask_rule != "none" else head


class CentralizedRun:
    """The baseline between rounds: the model's weights, the mask and the optimizer's momentum."""

    def __init__(self, workspace: Workspace, session: RunSession, notes: dict[str, Any]) -> None:
        self.workspace = workspace
        self.session = session
        self.config = workspace.config
        self.notes = notes
        self.mask: FlatMask | None = None
        self.optimizer = make_optimizer(self.config, workspace.model)
        self.steps = [*_preparations(self.config), "start"]
        self.round = 0

    def run(self) -> None:
        """Make head and mask, measure round 0, then train; or go on where a checkpoint was."""
        if self.session.checkpoint:
            self._restore()
        while self.steps or self.round < self.config.num_server_rounds:
            if reason := self.session.stop_reason():
                self._finish("stopped", reason)
                return
            row = self._prepare(self.steps.pop(0)) if self.steps else self._train(self.round + 1)
            self.session.add(row, self._state)
        self._finish("finished", "")

    def _prepare(self, step: str) -> Row:
        began = time.perf_counter()
        if step == "head":
            self._make_head()
        elif step == "calibrate":
            self._use_mask(own_mask(self.workspace, None))
        else:
            self.session.initial_sha256 = self._sha256()
            figures = self._measure()
            if self.workspace.head:
                check_above_chance(self.workspace, figures["val_accuracy"])
            return Row(0, "start", **figures)
        return Row(1, step, seconds=round(time.perf_counter() - began, 4))

    def _make_head(self) -> None:
        statistics = head_statistics(self.workspace, self.workspace.head_data(None))
        fitted = fit_head(self.workspace, statistics)
        assert self.workspace.head is not None
        self.workspace.head.load(fitted.vector)
        self.notes["head"] = {
            "kind": "ridge", "ridge": fitted.ridge, "temperature": fitted.temperature
        }  # fmt: skip

    def _use_mask(self, mask: FlatMask) -> None:
        self.mask = mask
        self.optimizer.set_masks(self.workspace.weights.views(mask.mask))
        trained, entries = mask.num_trained, mask.mask.numel()
        self.notes["mask"] = {"density": mask.density, "trained": trained, "of": entries}

    def _train(self, round_: int) -> Row:
        began = time.perf_counter()
        lr = learning_rate(self.config, round_)
        images = self.workspace.data.train
        with self.optimizer.skip_frozen_tensors():
            loss = train_steps(self.workspace, self.optimizer, images, lr=lr, key=(round_,))
        check_loss(loss, round_)
        self.round = round_
        seconds = round(time.perf_counter() - began, 4)
        last = round_ == self.config.num_server_rounds
        due = last or round_ % self.config.eval_every == 0
        figures = self._measure(last=last) if due else Figures()
        return Row(round_, "train", train_loss=loss, seconds=seconds, **figures)

    def _measure(self, *, last: bool = False) -> Figures:
        return measure(self.workspace, self.workspace.weights.vector, last=last)

    def _sha256(self) -> str:
        head = [self.workspace.head.vector.cpu()] if self.workspace.head else []
        return weights_sha256(torch.cat([self.workspace.weights.vector.cpu(), *head]))

    def _state(self) -> State:
        tensors: dict[str, Tensor] = {"weights": self.workspace.weights.vector}
        if self.workspace.head:
            tensors["head"] = self.workspace.head.vector
        if self.mask:
            tensors["mask"] = torch.from_numpy(np.frombuffer(self.mask.to_bits(), np.uint8).copy())
        for name, parameter in self.workspace.model.named_parameters():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum/{name}"] = buffer
        return tensors, {"round": self.round, "steps": self.steps, "notes": self.notes}

    def _restore(self) -> None:
        assert self.session.checkpoint is not None
        tensors, state = self.session.checkpoint.tensors, self.session.checkpoint.state
        weights = self.workspace.weights
        weights.load(tensors["weights"])
        if self.workspace.head:
            self.workspace.head.load(tensors["head"])
        if "mask" in tensors:
            bits = tensors["mask"].numpy().tobytes()
            self._use_mask(FlatMask.from_bits(bits, weights.vector.numel(), weights.vector.device))
        for name, parameter in self.workspace.model.named_parameters():
            if f"momentum/{name}" in tensors:
                buffer = tensors[f"momentum/{name}"].to(parameter.device)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.round, self.steps = int(state["round"]), list(state["steps"])
        self.notes.update(state["notes"])

    def _finish(self, status: str, reason: str) -> None:
        self.session.finish(status, reason, self._state, self._sha256())
