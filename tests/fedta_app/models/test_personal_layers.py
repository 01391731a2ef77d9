"""Which weights `personal-layers` names, on the models that come with fedta."""

from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
from torch import nn

from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.models.personal_layers import personal_layers
from fedta_app.training.workspace import Workspace, build_workspace
from fedta_app.vectors import FlatMask, FlatWeights


def workspace(folder: Path, **values: Any) -> Workspace:
    run = {"engine": "in-process", "num-clients": 4, "results-dir": str(folder), "threads": 1}
    return build_workspace(RunConfig.from_mapping({**run, **values}))


def test_head_is_the_head_and_norm_the_parameters_of_normalisation(tmp_path: Path) -> None:
    for model, weights in (("vit_digits", "pretrained"), ("resnet_gn", "random")):
        found = {}
        for patterns in ("head", "norm", "head,norm"):
            space = workspace(
                tmp_path, model=model, weights=weights, **{"personal-layers": patterns}
            )
            assert space.layers is not None
            found[patterns] = space.layers.names
        assert found["head"] == {"head.weight", "head.bias"}
        modules = dict(space.model.named_modules())
        kinds = {type(modules[name.rpartition(".")[0]]).__name__ for name in found["norm"]}
        assert kinds and all("Norm" in kind for kind in kinds)
        assert found["head,norm"] == found["head"] | found["norm"]


def test_timms_own_norms_are_norms_too() -> None:
    names = ("RmsNorm", "RmsNorm2d", "RmsNormAct", "SimpleNorm")
    kinds = [getattr(timm.layers, name) for name in names if hasattr(timm.layers, name)]
    assert len(kinds) >= 2  # the oldest timm that is admitted has no SimpleNorm
    model = nn.Sequential(nn.Linear(4, 4), *(kind(4) for kind in kinds))
    weights = FlatWeights(model, [name for name, _ in model.named_parameters()])
    layers = personal_layers("norm", model, weights, head="0")
    assert layers is not None
    assert layers.names == {f"{i}.weight" for i in range(1, len(model))}


def test_patterns_are_those_of_file_names(tmp_path: Path) -> None:
    space = workspace(tmp_path, **{"personal-layers": "blocks.0.*, patch_embed.*"})
    assert space.layers is not None
    expected = {n for n in space.weights.names if n.startswith(("blocks.0.", "patch_embed."))}
    assert space.layers.names == expected
    assert workspace(tmp_path).layers is None


def test_masks_are_split_into_what_travels_and_what_stays(tmp_path: Path) -> None:
    space = workspace(tmp_path, **{"personal-layers": "norm"})
    assert space.layers is not None
    size = space.weights.vector.numel()
    trained = FlatMask(torch.arange(size) % 3 == 0)
    for mask in (None, trained):
        travelling, own = space.layers.split(mask)
        whole = torch.ones(size, dtype=torch.bool) if mask is None else mask.mask
        assert torch.equal(travelling.mask ^ own.mask, whole)
        assert not (travelling.mask & own.mask).any()
        named = space.weights.views(own.mask)
        assert all(view.any() == (name in space.layers.names) for name, view in named.items())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"personal-layers": "haed"}, "'haed' matches none of the weights that are trained"),
        ({"personal-layers": "norm, blocks.99.*"}, "'blocks.99.\\*' matches none"),
        ({"personal-layers": "*"}, "all weights that are trained match, and none would travel"),
        ({"personal-layers": "norm", "model": "cnn", "weights": "random"}, "'norm' matches none"),
        ({"personal-layers": "blocks.0.*", "trained-blocks": 1}, "'blocks.0.\\*' matches none"),
        ({"personal-layers": "head,,norm"}, "personal-layers is none, or of head, norm"),
        ({"personal-layers": "head", "head": "ridge"}, "made first and then frozen"),
        ({"personal-layers": "norm", "strategy": "ditto"}, "models of their own"),
        ({"personal-layers": "norm", "strategy": "per-fedavg"}, "models of their own"),
        ({"personal-layers": "norm", "task-figures": True}, "one model for all"),
        ({"personal-layers": "norm", "interference-every": 2}, "interference-every = 2"),
        (
            {"personal-layers": "norm", "head": "ridge", "head-refresh": 2},
            "head-refresh = 2: its features are of one model",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    tmp_path: Path, values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        workspace(tmp_path, **values)


def test_a_run_without_clients_has_no_personal_layers(tmp_path: Path) -> None:
    space = workspace(tmp_path, engine="centralized", **{"personal-layers": "nothing"})
    assert space.layers is None
