"""Which runs read the same data."""

from typing import Any

import pytest

from fedta_app.config import RunConfig
from fedta_app.training.datasets import data_key

FOLDER = {"dataset": "folder", "image-folder": "cats", "model": "cnn", "weights": "random"}


def key(**values: Any) -> tuple[object, ...]:
    return data_key(RunConfig.from_mapping({**FOLDER, **values}))


@pytest.mark.parametrize(
    "change",
    [
        {"image-folder": "dogs"},
        {"image-size": 16},
        {"model": "vit_digits"},  # of another size of its own
        {"partition": "nodes"},  # the server's side, which has nothing to train on
        {"val-size": 0.2},
        {"data-dir": "elsewhere"},
    ],
    ids=str,
)
def test_runs_with_other_images_have_another_key(change: dict[str, Any]) -> None:
    assert key(**change) != key()


@pytest.mark.parametrize("change", [{"lr": 0.5}, {"partition": "iid"}, {"num-clients": 7}], ids=str)
def test_runs_with_the_same_images_share_a_key(change: dict[str, Any]) -> None:
    assert key(**change) == key()
