"""Timing the parts of a cell on this machine: a round, an image, a row.

A few rounds are run as the cell would run them, in this process; head, scores and evaluation are
timed on a sample of images, because all images may take hours. Results are discarded.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

from engine.client_memory import forget_run
from experiments.exit_status import ExitStatus
from experiments.running.launch import launch, why_failed
from fedta_app.algorithms import make_algorithm
from fedta_app.config import RunConfig
from fedta_app.data.loading import ImageSet
from fedta_app.errors import RunError
from fedta_app.files import expanded
from fedta_app.masks import needs_scores
from fedta_app.runs.directory import run_path
from fedta_app.runs.metrics import Row
from fedta_app.runs.records import read_rows
from fedta_app.runs.session import RunSession
from fedta_app.training.datasets import find_dataset
from fedta_app.training.facts import run_facts
from fedta_app.training.head_fit import head_statistics
from fedta_app.training.scoring import ScoringBatches, calibration, scores
from fedta_app.training.steps import evaluate, steps_of
from fedta_app.training.workspace import Workspace, build_workspace

_ROUNDS = 4  # the first one, with its warm-up, is not counted
_STEPS = 8  # steps that stand for an epoch of the baseline
_SAMPLE = 64  # images that scores are timed on
_FLOWER_START = 12.0  # seconds until the SuperLink, Ray and the first client are up


@dataclass(frozen=True)
class Parts:
    """Seconds of the parts of a cell.

    Attributes
    ----------
    setup : float
        From the start of the command to the first row.
    row : float
        Records and checkpoint of a row.
    round, probe_round : float
        A round of training, and a round of the linear probe.
    feature_image, score_image, evaluation_image : float
        Computing the features of an image, scoring it, and evaluating it.
    mask : float
        Making a mask from scores.
    images : tuple of int
        The numbers of training, validation and test images.
    """

    setup: float
    row: float
    round: float
    probe_round: float
    feature_image: float
    score_image: float
    evaluation_image: float
    mask: float
    images: tuple[int, int, int]


def measure_parts(config: RunConfig) -> Parts:
    """Run and time the parts of a cell.

    Raises
    ------
    RunError
        When the rounds cannot be run; the cell would fail in the same way.
    """
    with tempfile.TemporaryDirectory(prefix="fedta-plan-") as folder:
        here = config.with_values(
            name="plan", results_dir=folder, max_minutes=0.0, resume=False, keep_model="none",
            engine="in-process" if config.engine == "flower" else config.engine,
        )  # fmt: skip
        find_dataset(here).load(
            expanded(here.data_dir, f"data-dir = {here.data_dir!r}")
        )  # downloaded or decoded, once
        with redirect_stdout(io.StringIO()):
            began = time.perf_counter()
            workspace = build_workspace(here)
            setup = time.perf_counter() - began
            some = _some(workspace)
            score_image, mask = _time_scores(workspace)
            feature = _seconds(lambda: head_statistics(workspace, some)) if workspace.head else 0.0
            evaluation = _seconds(lambda: evaluate(workspace, some))
            opening, row = _time_rows(workspace)
            round_, probe_round = _time_rounds(here, len(workspace.data.train))
        data = workspace.data
        start = _FLOWER_START if config.engine == "flower" else 0.0
        return Parts(
            setup=setup + opening + start,
            row=row,
            round=round_,
            probe_round=probe_round,
            feature_image=feature / len(some),
            score_image=score_image,
            evaluation_image=evaluation / len(some),
            mask=mask,
            images=(len(data.train), len(data.val), len(data.test)),
        )


def _some(workspace: Workspace) -> ImageSet:
    """Return one evaluation batch of training images."""
    images = workspace.data.train
    return images.subset(torch.arange(min(workspace.config.eval_batch_size, len(images))))


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of a second call, after a first one to warm up."""
    work()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _time_scores(workspace: Workspace) -> tuple[float, float]:
    """Return the seconds of scoring an image, and of making a mask."""
    config = workspace.config
    if config.mask_rule == "none":
        return 0.0, 0.0
    if not needs_scores(config.mask_rule):
        return 0.0, _seconds(lambda: calibration(workspace).advance())
    number = min(config.calibration_examples or _SAMPLE, _SAMPLE, len(workspace.data.train))
    ids = torch.arange(number, device=workspace.device)
    batches = ScoringBatches(workspace, workspace.data.train.subset(ids), ids)
    found = scores(workspace, batches, None, 1)[: workspace.weights.vector.numel()]
    scoring = _seconds(lambda: scores(workspace, batches, None, 1))
    return scoring / number, _seconds(lambda: calibration(workspace).advance(found))


def _time_rows(workspace: Workspace) -> tuple[float, float]:
    """Return the seconds of opening and closing a session, and of a row with its checkpoint."""
    config, vector = workspace.config, workspace.weights.vector
    began = time.perf_counter()
    session = RunSession(
        config.with_values(name="plan-rows"), total_rows=8, facts=run_facts(workspace)
    )
    for number in range(4):
        session.add(Row(number, "train"), lambda: {"weights": vector})
    adding = time.perf_counter()
    for number in range(4, 8):
        session.add(Row(number, "train"), lambda: {"weights": vector})
    row = (time.perf_counter() - adding) / 4
    session.finish("finished", "", lambda: {"weights": vector}, "")
    return time.perf_counter() - began - 8 * row, row


def short_run(config: RunConfig, training_images: int) -> tuple[RunConfig, float]:
    """Return a few rounds of a cell, and how many of them one round of the cell is as long as."""
    factor = 1.0
    values: dict[str, Any] = {
        "num_server_rounds": _ROUNDS, "eval_every": _ROUNDS, "measure_test": "never",
        "lr": 1e-4, "lr_schedule": "constant", "warmup_rounds": 0, "local_steps_from": 0,
        "adacomm_rounds": 0, "noise_scale_rounds": 0, "interference_every": 0,
        "score_threshold": 0.0, "task_figures": False,
        # What only a ridge head has, which takes all images: a probe stands for it.
        "head_refresh": 0, "personal_ridge": 0.0, "attackers": 0.0, "secure_aggregation": False,
        # Too few images to tell whether a probe of two rounds is at chance, which is refused.
        "eval_size": 9,
    }  # fmt: skip
    if config.partition != "natural":  # whose clients have sizes of their own
        values["partition"] = "iid"
    if config.mask_rule != "none":
        values["mask_rule"] = "random"  # of the same density, and quickly made
    if config.engine == "centralized":
        values |= {"head": "random", "mask_rule": "none"}
        steps = steps_of(config, training_images)
        values["local_steps"] = min(steps, _STEPS)
        factor = steps / values["local_steps"]
    elif config.head != "random":
        values |= {"head": "probe", "probe_rounds": 2}
        # Neither of these is there for a probe; they take little of a round.
        values["update_bound"] = config.update_bound if config.dp_noise else 0.0
        if not make_algorithm(config.strategy, vars(config)).own_masks:
            values["strategy"] = "fedavg"
    return config.with_values(**values), factor


def _time_rounds(config: RunConfig, training_images: int) -> tuple[float, float]:
    """Run a few rounds of the cell; return the seconds of a round, and of a probe round."""
    short, factor = short_run(config, training_images)
    try:
        status = launch(short, client_cpus=1, client_gpus=0.0)
        if status == ExitStatus.INTERRUPTED:
            raise KeyboardInterrupt
        if status != ExitStatus.FINISHED:
            raise RunError(f"a round cannot be measured: {why_failed(run_path(short), {})}")
    finally:
        forget_run()
    seconds: dict[str, list[float]] = {"head": [], "train": []}
    for row in read_rows(run_path(short)):
        seconds.setdefault(row["phase"], []).append(float(row["seconds"]))
    probe = seconds["head"][-1] if seconds["head"] else 0.0
    return factor * statistics.median(seconds["train"][1:]), probe
