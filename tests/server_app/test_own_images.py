"""Nodes that train on images of their own, which nobody else has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from PIL import Image

from client_app.app import app as client_app
from engine.inprocess import InProcessGrid
from fedta_app.config import RunConfig
from fedta_app.data.folder import image_folder
from fedta_app.data.loading import load_side
from fedta_app.errors import ConfigError, DataError, RunError
from fedta_app.finished.reading import Run
from fedta_app.training.scoring import client_batches
from fedta_app.training.workspace import build_workspace
from server_app.loop import run_rounds
from tests.runs import read_summary
from tests.server_app.test_deployment import RUN, DeployedGrid

CLASSES = ("circle", "line", "point")
SIZES = (8, 5, 3)
IMAGES = {
    "dataset": "folder", "partition": "nodes", "model": "vit_digits", "weights": "random",
    "image-size": 8,
}  # fmt: skip


def put(folder: Path, split: str, labels: list[int], seed: int) -> None:
    """Write an image of noise for each label, brighter by class, and a folder for each class."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / split / name).mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(labels):
        pixels = rng.integers(0, 80, (8, 8, 3)) + 80 * label
        path = folder / split / CLASSES[label] / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Return a folder with the server's images in `server`, and those of nodes in 0, 1 and 2."""
    put(tmp_path / "server", "train", [0, 1, 2] * 3, 10)
    put(tmp_path / "server", "test", [0, 1, 2] * 4, 11)
    for node, size in enumerate(SIZES):  # no node has all classes
        put(
            tmp_path / str(node),
            "train",
            [(node + n) % 3 if n % 2 else node for n in range(size)],
            node,
        )
    return tmp_path


def deployed(folders: Path, **changes: Any) -> tuple[DeployedGrid, RunConfig]:
    """Return the nodes, each with a folder of its own, and the server's configuration."""
    values = {
        **RUN,
        **IMAGES,
        "cache-dir": "",
        "missing-clients": "refuse",
        "results-dir": str(folders / "runs"),
        **changes,
    }
    nodes = {
        100 + p: {
            "partition-id": p, "image-folder": str(folders / str(p)),
            "results-dir": str(folders / f"runs{p}"),
        }
        for p in range(3)
    }  # fmt: skip
    server = {**values, "image-folder": str(folders / "server")}
    return DeployedGrid(values, nodes), RunConfig.from_mapping(server)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="scaffold"),
        pytest.param({"trained-blocks": 1, "cache-dir": "cache"}, id="frozen blocks"),
        pytest.param(
            {"strategy": "fedavg", "secure-aggregation": True, "mask-rule": "none"}, id="secure"
        ),
        pytest.param({"mask-scope": "client"}, id="own masks", marks=SLOW),
        pytest.param(
            {"head": "random", "mask-rule": "none", "strategy": "feddyn"}, id="feddyn", marks=SLOW
        ),
        pytest.param(
            {"strategy": "fedavg", "superclient-clients": 2}, id="superclients", marks=SLOW
        ),
    ],
)
def test_a_run_in_which_each_node_has_its_own_images(
    folders: Path, changes: dict[str, Any]
) -> None:
    if "cache-dir" in changes:
        changes = {**changes, "cache-dir": str(folders / "cache")}
    grid, config = deployed(folders, **changes)
    run_rounds(grid, config)
    summary = read_summary(folders / "runs", config)
    assert summary["status"] == "finished"
    assert summary["partition"]["images-per-client"] == [3, 16 / 3, 8]
    assert summary["partition"]["label-distance"] is None
    assert summary["data"]["training-images"] == 16
    assert summary["data"]["validation-images"] == 9 and summary["data"]["test-images"] == 12
    assert not (folders / "runs/test/seed0/partition.png").exists()


def test_the_head_is_that_of_all_images_together(folders: Path) -> None:
    """One node with the images of all ends with the ridge head that three nodes end with."""
    grid, config = deployed(folders, **{"num-server-rounds": 1, "lr": 1e-30, "mask-rule": "none"})
    run_rounds(grid, config)
    apart = read_summary(folders / "runs", config)
    everything = folders / "all"
    for node in range(3):
        for path in (folders / str(node)).rglob("*.png"):
            target = everything / "train" / path.parent.name / f"{node}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    alone, config = deployed(
        folders, **{"num-server-rounds": 1, "lr": 1e-30, "mask-rule": "none", "num-clients": 1,
                    "name": "alone"}
    )  # fmt: skip
    alone.nodes = {100: {"partition-id": 0, "image-folder": str(everything)}}
    run_rounds(alone, config)
    together = read_summary(folders / "runs", config)
    for figure in ("val_loss", "test_loss"):
        assert apart["final"][figure] == pytest.approx(together["final"][figure], rel=1e-5)


def test_what_weighs_is_how_many_images_a_node_has(folders: Path) -> None:
    grid, config = deployed(folders)
    answer, said = grid._answer, {}

    def listen(message: Message) -> Message:
        reply = answer(message)
        if message.metadata.message_type == "train":
            metrics = reply.content.metric_records["metrics"]
            said[message.metadata.dst_node_id - 100] = metrics["num-examples"]
        return reply

    grid._answer = listen  # type: ignore[method-assign]
    run_rounds(grid, config)
    assert said == dict(enumerate(SIZES))


def test_a_node_that_claims_more_images_than_it_has_is_rejected(folders: Path) -> None:
    """No more than all nodes have together, and one more than it said at first."""
    grid, config = deployed(folders, **{"head": "random", "mask-rule": "none"})
    answer = grid._answer

    def claim(message: Message) -> Message:
        reply = answer(message)
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 101:
            reply.content.metric_records["metrics"]["num-examples"] = SIZES[1] + 1
        return reply

    grid._answer = claim  # type: ignore[method-assign]
    run_rounds(grid, config)
    rejected = read_summary(folders / "runs", config)["rejected"]
    assert {entry["client"] for entry in rejected} == {1}
    assert "num-examples = 6, which is no whole number from 1 to 5" in rejected[0]["sent"]


def test_images_of_two_nodes_have_ids_of_their_own(folders: Path) -> None:
    """A label that is drawn for an image depends on its id."""
    _, config = deployed(folders)
    ids = []
    for node in range(3):
        own = config.with_values(image_folder=str(folders / str(node)))
        ids += client_batches(build_workspace(own, node=node), node).ids.tolist()
    assert len(ids) > 6 and len(set(ids)) == len(ids)


def test_a_node_needs_the_folders_of_the_servers_classes(folders: Path) -> None:
    grid, config = deployed(folders)
    (folders / "1/train/line").rename(folders / "1/train/lines")
    said = (
        r"the node 101 \(partition-id = 1\) has the classes circle, lines, point, and the server "
        "circle, line, point: both need a folder"
    )
    with pytest.raises(RunError, match=said):
        run_rounds(grid, config)


def test_a_node_whose_classes_are_others_has_another_layout(folders: Path) -> None:
    """It may be started again with others under the same id, and nobody asks what they are."""
    _, config = deployed(folders)
    server = build_workspace(config).layout
    own = config.with_values(image_folder=str(folders / "1"))
    assert build_workspace(own, node=1).layout == server
    (folders / "1/train/line").rename(folders / "1/train/a-line")
    assert build_workspace(own, node=1).layout != server


def test_the_card_of_the_model_counts_the_images_of_all_nodes(folders: Path) -> None:
    grid, config = deployed(folders)
    run_rounds(grid, config)
    kept = Run(folders / "runs/test/seed0").kept()
    assert kept.facts["data"]["training-images"] == 16


def test_a_node_that_claims_too_much_for_a_secure_sum_is_named(folders: Path) -> None:
    grid, config = deployed(folders, **{"strategy": "fedavg", "secure-aggregation": True})
    answer = grid._answer

    def boast(message: Message) -> Message:
        reply = answer(message)
        if message.metadata.message_type == "query" and message.metadata.dst_node_id == 101:
            reply.content.config_records["config"]["images"] = 2**31 - 1
        return reply

    grid._answer = boast  # type: ignore[method-assign]
    with pytest.raises(RunError, match="the 2147483647 images of the largest client"):
        run_rounds(grid, config)


@pytest.mark.parametrize("lacks", ["server", "1"])
def test_a_folder_that_is_missing_is_named_before_any_work(folders: Path, lacks: str) -> None:
    grid, config = deployed(folders)
    (folders / lacks).rename(folders / "elsewhere")
    with pytest.raises((DataError, RunError), match=f"there is no folder .*/{lacks}: image-folder"):
        run_rounds(grid, config)
    assert not any(kind.startswith("train") for _, kind in grid.asked)


def test_a_simulation_has_no_such_nodes(folders: Path) -> None:
    _, config = deployed(folders)
    grid = InProcessGrid(client_app, 3, {})
    with pytest.raises(ConfigError, match=r"'nodes' is not allowed in a simulation.*deployment"):
        run_rounds(grid, config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "in-process"}, "with engine = 'in-process': nodes have images of their own in"),
        ({"dataset": "digits"}, "with dataset = 'digits': dataset is folder there"),
        ({"clients-per-node": 2}, "with clients-per-node = 2: a node is one client there"),
        ({"task-figures": True}, "with task-figures = true: the server measures it on"),
        ({"strategy": "per-fedavg"}, "with strategy = 'per-fedavg': the server measures"),
    ],
)
def test_what_needs_all_images_in_one_place_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"partition = 'nodes' is not allowed {said}"):
        RunConfig.from_mapping({**IMAGES, **changes})


def test_a_side_is_all_for_training_or_all_to_measure_on(folders: Path) -> None:
    node = load_side(image_folder(folders / "2", 8, of_node=True), "", of_node=True)
    assert (len(node.train), len(node.val), len(node.test)) == (3, 0, 0)
    assert sorted(node.train.labels.tolist()) == [0, 2, 2]
    server = load_side(image_folder(folders / "server", 8), "", of_node=False)
    assert (len(server.train), len(server.val), len(server.test)) == (0, 9, 12)
    assert node.mean == server.mean == (0.5, 0.5, 0.5) and torch.equal(
        server.val.labels, torch.arange(3).repeat_interleave(3)
    )
