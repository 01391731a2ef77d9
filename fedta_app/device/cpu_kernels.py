"""Matrix products of linear layers by oneDNN, where PyTorch's own are slow.

PyTorch multiplies float32 matrices on a CPU by Intel's MKL, which on other makers' processors does
not use their AVX-512 units: on an AMD EPYC a linear layer takes twice the time that oneDNN, which
is part of PyTorch too, needs for it. Inductor, PyTorch's compiler, calls oneDNN the same way.

A convolution whose patches do not overlap, as the first layer of a vision transformer, is a linear
layer on patches: its weight's gradient is then a product as well, not a slow special case.

Values differ from PyTorch's own by rounding. What is chosen depends on the processor and on the
configuration alone, never on a measurement: every process of a run must get the same bits.
"""

import platform
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_variadic

ONEDNN, TORCH = "onednn", "torch"
# Smaller weights gain nothing: starting the operation costs more than the product.
_SMALLEST_WEIGHT = 2**15


def use_kernels(model: nn.Module, kernels: str, device: torch.device) -> str:
    """Let a model's layers use the kernels, and return which ones those are.

    Parameters
    ----------
    kernels : str
        ``auto``: oneDNN on an AMD CPU, else PyTorch's own; or ``onednn``, ``torch``.

    Raises
    ------
    ValueError
        If oneDNN is asked for and is not there, or the model is not on a CPU.
    """
    if kernels == "auto":
        kernels = ONEDNN if device.type == "cpu" and is_available() and _is_amd() else TORCH
    if kernels == TORCH:
        return TORCH
    if device.type != "cpu" or not is_available():
        raise ValueError(
            f"kernels = 'onednn' is not allowed on {device}: this PyTorch has oneDNN "
            f"{'only on the CPU' if is_available() else 'nowhere'}; kernels is auto or torch here"
        )
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= _SMALLEST_WEIGHT:
            module.__class__ = Linear
        elif type(module) is nn.Conv2d and _is_patches(module):
            module.__class__ = PatchConv2d
    return ONEDNN


def is_available() -> bool:
    """Return whether this PyTorch has the operation that Inductor calls for linear layers."""
    return bool(torch.backends.mkldnn.is_available()) and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )


def write_out_attention(model: nn.Module) -> None:
    """Let timm's attention layers multiply and normalise step by step.

    PyTorch's fused kernel for CPUs is slower in bf16 than the steps one by one:
    `python -m benchmarks.bench_precision`. What stays in float32 (head statistics, Fisher
    information) goes step by step too.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def has_bf16_units() -> bool:
    """Tell whether the CPU multiplies bf16 itself (AVX512-BF16, AMX or ARM's), as Linux says."""
    words = set(_cpuinfo().split())
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def _is_amd() -> bool:
    # Windows has no /proc, and names the maker there.
    return "AuthenticAMD" in (_cpuinfo() or platform.processor())


@lru_cache(maxsize=1)
def _cpuinfo() -> str:
    """Return what Linux says of the first processor, or nothing."""
    try:
        return Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return ""


def _is_patches(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == layer.stride
        and layer.padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )


class Linear(nn.Linear):
    """`nn.Linear` by oneDNN."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the product, input [..., in] to output [..., out]."""
        return linear(input, self.weight, self.bias)


class PatchConv2d(nn.Conv2d):
    """A convolution over patches that do not overlap, as a linear layer by oneDNN."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, out, H / h, W / w] for images [B, in, H, W] and patches of h x w pixels."""
        height, width = self.kernel_size
        watched = has_torch_function_variadic(input, self.weight)  # by who knows convolutions
        if watched or input.shape[2] % height or input.shape[3] % width:
            return super().forward(input)
        patches = input.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # [B, rows, columns, in * h * w]
        return linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `torch.nn.functional.linear` does, by oneDNN for float32 on a CPU.

    Parameters
    ----------
    input : Tensor of shape (..., in)
    weight : Tensor of shape (out, in)
    bias : Tensor of shape (out,), optional

    Returns
    -------
    Tensor of shape (..., out)
    """
    if has_torch_function_variadic(input, weight):
        return handle_torch_function(linear, (input, weight), input, weight, bias)
    if input.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or not input.numel():
        return F.linear(input, weight, bias)
    rows = input.reshape(-1, input.shape[-1])
    if torch.is_grad_enabled():
        product: Tensor = _Product.apply(rows, weight, bias)
    else:
        product = _times_transposed(rows, weight, bias)
    return product.view(*input.shape[:-1], len(weight))


class _Product(Function):
    """y = x w^T + b on matrices, and its gradients: g w for x, g^T x for w, the sum of g for b."""

    @staticmethod
    def forward(ctx, x, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        return _times_transposed(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _times_transposed(gradient, weight.t()) if for_x else None,
            _times_transposed(gradient.t(), x.t()) if for_weight else None,
            gradient.sum(0) if for_bias else None,
        )


def _times_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product
