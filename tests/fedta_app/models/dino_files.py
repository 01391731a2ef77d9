"""Files laid out as the official DINO release lays them out, filled with seeded noise."""

import torch
from torch import Tensor

DIM, DEPTH, PATCH = 384, 12, 16


def official_state(seed: int = 0, *, patch: int = PATCH, depth: int = DEPTH) -> dict[str, Tensor]:
    """Names and shapes of dino_deitsmall16_pretrain.pth, written down by hand."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, 1 + (224 // patch) ** 2, DIM),
        "patch_embed.proj.weight": (DIM, 3, patch, patch),
        "patch_embed.proj.bias": (DIM,),
    }
    for block in range(depth):
        for name, shape in {
            "norm1.weight": (DIM,),
            "norm1.bias": (DIM,),
            "attn.qkv.weight": (3 * DIM, DIM),
            "attn.qkv.bias": (3 * DIM,),
            "attn.proj.weight": (DIM, DIM),
            "attn.proj.bias": (DIM,),
            "norm2.weight": (DIM,),
            "norm2.bias": (DIM,),
            "mlp.fc1.weight": (4 * DIM, DIM),
            "mlp.fc1.bias": (4 * DIM,),
            "mlp.fc2.weight": (DIM, 4 * DIM),
            "mlp.fc2.bias": (DIM,),
        }.items():
            shapes[f"blocks.{block}.{name}"] = shape
    shapes |= {"norm.weight": (DIM,), "norm.bias": (DIM,)}
    generator = torch.Generator().manual_seed(seed)
    return {n: 0.05 * torch.randn(s, generator=generator) for n, s in shapes.items()}


def class_token_features(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """DINO's features, written from the paper's equations: the class token after the last norm."""
    norm = torch.nn.functional.layer_norm
    linear = torch.nn.functional.linear
    patches = torch.nn.functional.conv2d(
        images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH
    )
    tokens = patches.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), tokens], dim=1)
    x = x + state["pos_embed"]
    for block in range(DEPTH):
        p = {
            name.removeprefix(f"blocks.{block}."): value
            for name, value in state.items()
            if name.startswith(f"blocks.{block}.")
        }
        y = norm(x, (DIM,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        qkv = linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"])
        q, k, v = qkv.view(len(x), -1, 3, 6, 64).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / 8).softmax(dim=-1)
        y = (attention @ v).transpose(1, 2).reshape(x.shape)
        x = x + linear(y, p["attn.proj.weight"], p["attn.proj.bias"])
        y = norm(x, (DIM,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        hidden = torch.nn.functional.gelu(linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + linear(hidden, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    return norm(x, (DIM,), state["norm.weight"], state["norm.bias"], 1e-6)[:, 0]
