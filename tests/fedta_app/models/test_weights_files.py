import argparse
import hashlib
import re
import tempfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fedta_app.errors import ModelError
from fedta_app.models import weights_files
from fedta_app.models.architectures import ARCHITECTURES
from fedta_app.models.weights_files import fetch_from_hub, load_weights, read_weights, state_sha256
from tests.fedta_app.models.dino_files import official_state

SMALL = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def save_pth(folder: Path, content) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.fixture
def vit():
    return ARCHITECTURES["vit_digits"].build(image_size=8, in_channels=1, num_classes=10)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_reads_a_flat_file(tmp_path, suffix):
    torch.save(SMALL, tmp_path / f"w{suffix}")
    assert equal(read_weights(tmp_path / f"w{suffix}"), SMALL)


def test_reads_safetensors_as_it_reads_pth(tmp_path):
    save_file(SMALL, tmp_path / "w.safetensors")
    assert equal(read_weights(tmp_path / "w.safetensors"), read_weights(save_pth(tmp_path, SMALL)))


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": SMALL, "epoch": 3},
        {"model": SMALL},
        {"model": {"state_dict": SMALL}},
        {"teacher": SMALL, "student": {"a.weight": torch.zeros(2, 3)}},
        {f"module.{name}": value for name, value in SMALL.items()},
        {f"_orig_mod.{name}": value for name, value in SMALL.items()},
        {f"module.backbone.{name}": value for name, value in SMALL.items()},
        SMALL | {"epoch": 3},
    ],
)
def test_unwraps_what_training_scripts_save(tmp_path, content):
    assert equal(read_weights(save_pth(tmp_path, content)), SMALL)


PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "teacher."]
BESIDE = {  # what training scripts leave beside the weights
    "n_averaged": torch.tensor(7),
    "criterion.weight": torch.ones(10),
    "head.mlp.0.weight": torch.ones(8, 3),
}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(PREFIXES), max_size=5),
    st.lists(st.sampled_from(["state_dict", "model", "teacher"]), max_size=3),
    st.sets(st.sampled_from(sorted(BESIDE))),
    st.data(),
)
def test_any_stack_of_wrappers_is_taken_off(stack, keys, beside, data):
    state = {f"blocks.{i}.weight": torch.full((2,), float(i)) for i in range(5)}
    depth = data.draw(st.integers(0, len(stack)), label="where the others lie")
    visible = any(prefix != "_orig_mod." for prefix in stack[depth:])
    content = {"".join(stack[depth:]) + name: value for name, value in state.items()}
    if visible:  # else nothing tells them from weights
        content |= {name: BESIDE[name] for name in beside}
    content = {"".join(stack[:depth]) + name: value for name, value in content.items()}
    for key in keys:
        content = {key: content, "epoch": 3, "optimizer": {"state": {}}}
    with tempfile.TemporaryDirectory() as folder:
        assert equal(read_weights(save_pth(Path(folder), content)), state)


def test_names_that_pytorch_changes_inside_a_model_are_restored(tmp_path):
    state = {f"blocks.{i}.{n}": torch.ones(i + 1) for i in range(3) for n in ("a", "b.c")}
    middle = {name.replace(".", "._orig_mod.", 1): value for name, value in state.items()}
    assert equal(read_weights(save_pth(tmp_path, middle)), state)
    sharded = {
        f"_fsdp_wrapped_module.{name.replace('s.', 's._checkpoint_wrapped_module.')}": value
        for name, value in state.items()
    }
    assert equal(read_weights(save_pth(tmp_path, sharded)), state)


def test_the_teacher_is_taken_from_names_as_from_dictionaries(tmp_path):
    student = {f"student.backbone.{name}": torch.zeros_like(t) for name, t in SMALL.items()}
    teacher = {f"teacher.backbone.{name}": value for name, value in SMALL.items()}
    assert equal(read_weights(save_pth(tmp_path, {"model": student | teacher})), SMALL)


def test_a_prefix_of_few_names_belongs_to_the_model(tmp_path):
    state = {"a.weight": torch.ones(1), "b.weight": torch.ones(1), "backbone.c": torch.ones(1)}
    assert equal(read_weights(save_pth(tmp_path, state)), state)


@pytest.mark.parametrize(
    ("content", "several"),
    [
        ({"state_dict": SMALL, "model": SMALL}, "'state_dict' and 'model'"),
        ({"model": {"teacher": SMALL, "state_dict": SMALL}}, "'teacher' and 'state_dict'"),
        (
            SMALL | {f"module.{name}": SMALL["b"] for name in ("a.weight", "b", "c")},
            "'a.weight' and 'module.a.weight'",
        ),
        ({"_orig_mod.b": SMALL["b"], "b": SMALL["b"]}, "'_orig_mod.b' and 'b'"),
        ({"model.a": SMALL["b"], "model._orig_mod.a": SMALL["b"]}, "'model.a' and 'model._orig"),
    ],
)
def test_refuses_a_file_that_holds_several_models(tmp_path, content, several):
    with pytest.raises(ModelError, match=re.escape(several)) as caught:
        read_weights(save_pth(tmp_path, content))
    assert "save the state dict of one model" in str(caught.value)


def test_reads_the_teacher_of_a_full_dino_checkpoint(tmp_path):
    backbone = official_state(1, depth=1)
    projection = {
        "head.mlp.0.weight": torch.ones(8, 384),
        "head.last_layer.weight_g": torch.ones(4),
    }
    checkpoint = {
        "student": {f"module.backbone.{n}": torch.zeros_like(t) for n, t in backbone.items()},
        "teacher": {f"backbone.{n}": t for n, t in backbone.items()} | projection,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 800,
        "args": argparse.Namespace(arch="deit_small", patch_size=16),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }
    assert equal(read_weights(save_pth(tmp_path, checkpoint)), backbone)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_runs_no_code_of_a_file(tmp_path):
    path = save_pth(tmp_path, {"a": torch.ones(1), "b": Bomb(str(tmp_path / "exploded"))})
    with pytest.raises(ModelError, match="cannot be read as tensors alone"):
        read_weights(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("w.pth", None, "there is no such file"),
        ("w.npz", b"x", "ends in .pth, .pt, .bin, .safetensors"),
        ("w.pth", b"", "cannot be read"),
        ("w.pth", b"not a checkpoint at all", "cannot be read"),
        ("w.safetensors", b"", "cannot be read"),
        ("w.safetensors", b"\xff" * 64, "cannot be read"),
    ],
)
def test_refuses_files_that_are_not_weights(tmp_path, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=sentence) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_refuses_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    save_file(SMALL, path) if suffix == ".safetensors" else torch.save(SMALL, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1.0], torch.ones(3)])
def test_refuses_a_file_without_named_tensors(tmp_path, content):
    with pytest.raises(ModelError, match="holds no named tensors"):
        read_weights(save_pth(tmp_path, content))


def test_load_weights_reports_whether_the_head_fits(vit):
    other = ARCHITECTURES["vit_digits"].build(image_size=8, in_channels=1, num_classes=10)
    assert load_weights(vit, other.state_dict(), head="head", source="x")
    assert equal(vit.state_dict(), other.state_dict())
    wider = ARCHITECTURES["vit_digits"].build(image_size=8, in_channels=1, num_classes=26)
    before = vit.head.weight.clone()
    assert not load_weights(vit, wider.state_dict(), head="head", source="x")
    assert torch.equal(vit.head.weight, before)
    assert torch.equal(vit.cls_token, wider.cls_token)


def test_half_precision_files_become_float32(vit):
    state = {name: value.half() for name, value in vit.state_dict().items()}
    load_weights(vit, state, head="head", source="x")
    assert all(parameter.dtype == torch.float32 for parameter in vit.parameters())
    assert torch.equal(vit.norm.weight, state["norm.weight"].float())


def rename(state, old, new):
    return {new if name == old else name: value for name, value in state.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: rename(s, "norm.bias", "norm.offset"), "1 missing (norm.bias)"),
        (lambda s: rename(s, "norm.bias", "norm.offset"), "1 left over (norm.offset)"),
        (lambda s: s | {"norm.bias": torch.zeros(3)}, "norm.bias (3,) instead of (64,)"),
        (lambda s: s | {"norm.bias": torch.full((64,), torch.nan)}, "1 not finite (norm.bias)"),
        (
            lambda s: {n: t for n, t in s.items() if not n.startswith("blocks.3.")},
            "12 missing (blocks.3.norm1.weight, blocks.3.norm1.bias, blocks.3.attn.qkv.w",
        ),
        (
            lambda s: s | {"patch_embed.proj.weight": torch.zeros(64, 1, 4, 4)},
            "its patches are 4 x 4 pixels and the model's 2 x 2",
        ),
        (lambda s: {"fc.weight": torch.zeros(3)}, "missing (cls_token, pos_embed"),
        (lambda s: s | {"pos_embed": torch.zeros(1, 17, 32)}, "pos_embed"),
        (lambda s: s | {"dist_token": torch.zeros(1, 1, 64)}, "1 left over (dist_token)"),
        (lambda s: s | {"encoder": torch.zeros(1)}, "AttributeError"),  # of timm's conversion
    ],
)
def test_refuses_weights_that_do_not_fit_and_leaves_the_model_alone(vit, change, sentence):
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    with pytest.raises(ModelError, match=re.escape(sentence)) as caught:
        load_weights(vit, change(state), head="head", source="weights = 'x'")
    assert str(caught.value).startswith("weights = 'x' does not fit")
    assert equal(vit.state_dict(), before)


def test_channels_other_than_colour_to_grey_are_refused():
    grey = ARCHITECTURES["cnn"].build(image_size=8, in_channels=1, num_classes=10)
    colour = ARCHITECTURES["cnn"].build(image_size=8, in_channels=3, num_classes=10)
    with pytest.raises(ModelError, match=r"conv1\.weight"):
        load_weights(colour, grey.state_dict(), head="head", source="x")
    load_weights(grey, colour.state_dict(), head="head", source="x")
    assert torch.allclose(grey.conv1.weight, colour.conv1.weight.sum(1, keepdim=True))


def test_state_sha256_sees_names_shapes_types_and_bits():
    states = [
        SMALL,
        {"a.weight": SMALL["a.weight"], "c": SMALL["b"]},
        SMALL | {"a.weight": SMALL["a.weight"].view(3, 2)},
        SMALL | {"b": torch.ones(1, dtype=torch.float64)},
        SMALL | {"b": torch.nextafter(torch.ones(1), torch.zeros(1))},
        SMALL | {"b": torch.tensor(1.0)},
    ]
    assert len({state_sha256(state) for state in states}) == len(states)
    assert state_sha256(dict(reversed(SMALL.items()))) == state_sha256(SMALL)
    transposed = {"a.weight": SMALL["a.weight"].t().contiguous().t(), "b": SMALL["b"]}
    assert state_sha256(transposed) == state_sha256(SMALL)


def test_state_sha256_follows_its_definition():
    text = b"b torch.float32 (1,)\n" + b"\x00\x00\x80\x3f"
    assert state_sha256({"b": torch.ones(1)}) == hashlib.sha256(text).hexdigest()


def test_the_hub_cache_is_used_without_a_network(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"x")
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = fetch_from_hub("some/model")
    assert found == snapshot / "model.safetensors"


def test_without_a_network_the_hub_is_asked_once(monkeypatch):
    closed = "http://127.0.0.1:9/model.safetensors"  # nothing listens: an error of the real client
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda **_: closed)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **_: pytest.fail())
    with pytest.raises(ModelError, match="could not be downloaded") as caught:
        fetch_from_hub("some/model")
    assert "https://huggingface.co/some/model" in str(caught.value)
    assert "pass its path as weights" in str(caught.value)


def test_offline_mode_is_one_sentence_too(monkeypatch):
    monkeypatch.setattr(weights_files.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="could not be downloaded"):
        fetch_from_hub("some/model@v1")


def test_a_model_without_convolutions_loads():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    state = {name: value + 1 for name, value in model.state_dict().items()}
    assert load_weights(model, state, head="2", source="x")
    assert equal(model.state_dict(), state)
