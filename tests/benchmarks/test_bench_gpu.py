import json
from collections import defaultdict
from pathlib import Path

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_gpu
from benchmarks.bench_gpu import MODES, counted, default_precisions, jobs, main, noise
from benchmarks.harness.operations import TransformerOperations, matrix_rate
from fedta_app.config import RunConfig
from fedta_app.training.workspace import build_workspace

DINO = "vit_small_patch16_224.dino"


@pytest.mark.parametrize(("name", "size"), [(DINO, 224), (DINO, 96), ("vit_tiny_patch16_224", 224)])
def test_operations_are_those_that_torch_counts(name: str, size: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=100, img_size=size)
        images = torch.empty(2, 3, size, size)
    ours = TransformerOperations.of(model)
    # Fused attention computes a product a second time in the backward pass.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = model(images).sum()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    assert 2 * ours.forward == forward.get_total_flops()
    assert 2 * ours.training == forward.get_total_flops() + backward.get_total_flops()


def test_a_round_of_the_experiment_is_70_teraflop() -> None:
    operations = counted()
    assert operations["forward-of-an-image"] == pytest.approx(9.197e9, rel=1e-3)
    assert operations["round"] == 10 * 4 * 64 * operations["training-of-an-image"]
    assert operations["round"] == pytest.approx(70.3e12, rel=1e-3)


def test_rows_are_half_precision_in_every_way_and_float32_once() -> None:
    rows = list(jobs(["bf16", "fp32"], list(MODES)))
    assert len(rows) == 2 * len(MODES) + 1
    assert rows[-1] == {"precision": "fp32", "compile": "off"}
    assert "fp32" in default_precisions(torch.device("cpu"))


def test_noise_has_the_shape_of_cifar100() -> None:
    splits = noise()
    assert splits.train.images.shape == (45_000, 3, 32, 32)
    assert splits.test.labels.bincount().tolist() == [100] * 100


def test_matrix_rates_are_measured_in_every_precision() -> None:
    for precision in ("fp32", "bf16"):
        assert matrix_rate(precision, torch.device("cpu"), 64, repeats=2) > 0


def test_a_round_counts_the_images_of_every_step() -> None:
    """16 steps pass over a client's 12 images as often as they are long."""
    config = RunConfig(num_clients=105, partition="iid", local_steps=16, batch_size=8)
    workspace = build_workspace(config)
    assert {len(held) for held in workspace.partitions} == {12}
    image = TransformerOperations.of(workspace.model).training
    assert bench_gpu._round_operations(workspace) == 10 * 8 * 12 * image  # passes of 8 and 4


def test_its_result_names_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "jobs", lambda precisions, modes: iter(()))
    monkeypatch.setattr(bench_gpu, "measure_rest", lambda config, device: defaultdict(int))
    path, data = tmp_path / "gpu.json", str(tmp_path / "data")
    given = ["--device", "cpu", "--tiny", "--data-dir", data, "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["bench_gpu", *given])
    main(given)
    assert json.loads(path.read_text())["command"].endswith(" --device cpu --tiny")
    assert str(tmp_path) not in path.read_text()


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    main(["--device", "cpu", "--tiny", "--rounds", "1", "--precision", "bf16", "--json", str(path)])
    output = capsys.readouterr().out
    assert "round 70.34" in output
    assert "TFLOP/s in products of 512 x 512 random matrices" in output
    assert "bf16, compile = off, density 0.1" in output
    report = json.loads(path.read_text())
    assert [row["density"] for row in report["rounds"]] == [1.0, pytest.approx(0.1)]
    for row in report["rounds"]:
        assert row["seconds"] > 0 and row["operations"] > 0
        assert sum(part["share"] for part in row["parts"]) == pytest.approx(1)
    assert report["rest"][0]["evaluation-images"] == 397
    assert report["images"] == "real" and report["code"]["commit"]
