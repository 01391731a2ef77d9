"""Linear layers by oneDNN, for CPUs on which PyTorch's own matrix products are slow.

PyTorch multiplies float32 matrices on a CPU by Intel's MKL, which does not use the AVX-512 units of
other makers' processors: on an AMD EPYC a linear layer takes twice as long as by oneDNN, which is
part of PyTorch too. Inductor, PyTorch's compiler, calls oneDNN in the same way.

A convolution whose patches do not overlap, like the first layer of a vision transformer, becomes a
linear layer on patches, so that the gradient of its weight is a fast matrix product too.

The results differ from PyTorch's own by rounding. The choice of kernels depends on the processor
and the configuration only, never on a measurement, so that all processes of a run get equal bits.
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
# For smaller weights, starting the operation takes longer than the product.
_SMALLEST_WEIGHT = 2**15


def use_kernels(model: nn.Module, kernels: str, device: torch.device) -> str:
    """Return the kernels to use, "onednn" or "torch", after preparing the model's layers for them.

    Parameters
    ----------
    kernels : str
        ``onednn``, ``torch``, or ``auto`` for oneDNN on an AMD CPU and PyTorch's own elsewhere.

    Raises
    ------
    ValueError
        If oneDNN is asked for and the device is not a CPU, or this PyTorch lacks oneDNN.
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
    """Make timm's attention layers compute step by step instead of by PyTorch's fused kernel.

    On CPUs the fused kernel is slower in bf16 (`python -m benchmarks.bench_precision`). Float32
    computations of the model (head statistics, Fisher information) are changed too.
    """
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def has_bf16_units() -> bool:
    """Return whether Linux lists bf16 units of the CPU: AVX512-BF16, AMX or ARM's."""
    words = set(_cpuinfo().split())
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def _is_amd() -> bool:
    # Windows has no /proc, but `platform.processor` names the maker.
    return "AuthenticAMD" in (_cpuinfo() or platform.processor())


@lru_cache(maxsize=1)
def _cpuinfo() -> str:
    """Return the entry of the first processor in /proc/cpuinfo, or "" without that file."""
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
        """Return the output (..., out) for the input (..., in)."""
        return linear(input, self.weight, self.bias)


class PatchConv2d(nn.Conv2d):
    """A convolution over patches that do not overlap, as a linear layer by oneDNN."""

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, out, H / h, W / w) for images (B, in, H, W) and patches of h x w pixels."""
        height, width = self.kernel_size
        watched = has_torch_function_variadic(
            input, self.weight
        )  # by a tape that handles convolutions
        if watched or input.shape[2] % height or input.shape[3] % width:
            return super().forward(input)
        patches = input.unflatten(3, (-1, width)).unflatten(2, (-1, height))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, rows, columns, in * h * w)
        return linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `torch.nn.functional.linear` returns, by oneDNN for float32 on a CPU.

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
    """The product y = x w^T + b of matrices, with its gradients."""

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
