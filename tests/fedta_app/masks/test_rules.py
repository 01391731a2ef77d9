"""A rule is a file: one more file in the folder, and runs can use it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.masks import MASK_RULES, needs_scores, rule_named
from fedta_app.runs.blobs import BlobStore
from fedta_app.vectors import FlatMask

ROOT = Path(__file__).resolve().parents[3]

# Its clients send their numbers of images at every second entry, and nothing elsewhere. So all
# even entries tie and rank first, by position: the mask is known without any model or data.
TOY = '''
"""Train the first even entries, as long as clients tell how many images they have."""

import torch

from fedta_app.masks import MaskRule, ScoreSums


def image_counts(model, names, batches):
    size = sum(model.get_parameter(name).numel() for name in names)
    images = sum(len(images) for images, *_ in batches)
    return images * (torch.arange(size) % 2 == 0).float()


class Counts(ScoreSums):
    def __init__(self, size):
        super().__init__(size)
        self.counts = torch.zeros(size)

    def add_statistic(self, statistic):
        self.counts += statistic

    def scores(self):
        assert self.counts.max() == 8 * self.num_clients, "calibration-examples is 8"
        return -self.counts.double()


RULE = MaskRule("toy", statistic=image_counts, sums=Counts)
'''


def run(folder: Path, **values: Any) -> subprocess.CompletedProcess[str]:
    """Run the demo by the command line, with the fedta_app of the folder."""
    pairs = [f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in values.items()]
    command = [sys.executable, "-m", "experiments", "run", "demo/masked", "--engine", "in-process"]
    command += ["--results-dir", str(folder / "runs"), *(p for s in pairs for p in ("--set", s))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_one_more_file_is_a_rule_of_federated_runs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fedta_app", tmp_path / "fedta_app", copy_function=os.symlink)
    (tmp_path / "fedta_app/masks/rules/toy.py").write_text(TOY)
    short = {
        "num_clients": 20, "num_server_rounds": 1, "local_steps": 1, "calibration_rounds": 2,
        "calibration_examples": 8, "sparsity": 0.9, "score_threshold": 0.0, "threads": 1,
    }  # fmt: skip
    done = run(tmp_path, mask_rule="toy", **short)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "runs").rglob("summary.json")
    noted = json.loads(path.read_text())["mask"]
    bits = BlobStore(path.parent / "blobs").get(noted["sha256"])
    mask = FlatMask.from_bits(bits, noted["of"], torch.device("cpu")).mask
    expected = torch.zeros_like(mask)
    expected[: 2 * noted["trained"] : 2] = True
    assert torch.equal(mask, expected)
    assert noted["trained"] == round(0.1 * noted["of"])
    rows = (path.parent / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    sent = [int(row.split(",")[columns.index("bytes_up")]) for row in rows if ",calibrate," in row]
    assert sent == [20 * 2 * 4 * noted["of"]] * 2

    refused = run(tmp_path, mask_rule="toy", mask_scope="client", **short)
    assert refused.returncode
    assert "mask-rule = 'toy' is not allowed with mask-scope = 'client'" in (
        refused.stdout + refused.stderr
    )


def test_what_rules_say_of_themselves() -> None:
    scored = {"least-sensitive", "most-sensitive", "agreement", "contrast"}
    assert {name for name in MASK_RULES if needs_scores(name)} == scored
    assert {name for name in MASK_RULES if rule_named(name).statistic} == {"agreement"}
    assert {name for name in MASK_RULES if rule_named(name).against_others} == {"contrast"}
    for name in MASK_RULES:
        size = rule_named(name).message_size(7)
        assert size == (14 if name == "agreement" else 7)
    with pytest.raises(ValueError, match="rule is 'best'; it must be one of least-sensitive,"):
        rule_named("best")


@pytest.mark.parametrize("name", MASK_RULES)
def test_a_threshold_is_allowed_where_the_rule_takes_one(name: str) -> None:
    values = {
        "head": "ridge", "mask-rule": name, "score-threshold": 0.5, "calibration-rounds": 1
    }  # fmt: skip
    if rule_named(name).takes_threshold:
        RunConfig.from_mapping(values)
    else:
        with pytest.raises(ConfigError, match=r"score-threshold = 0\.5 is not allowed here"):
            RunConfig.from_mapping(values)
