import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedta_app.config import RunConfig
from fedta_app.device import cpu_kernels
from fedta_app.device.cpu_kernels import (
    Linear,
    PatchConv2d,
    linear,
    use_kernels,
    write_out_attention,
)
from fedta_app.models.building import build_model
from fedta_app.sensitivity import fisher_diagonal
from fedta_app.training.workspace import build_workspace

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not cpu_kernels.is_available(), reason="PyTorch without oneDNN")


def gradients(function, *inputs):
    leaves = [value.clone().requires_grad_() for value in inputs]
    output = function(*leaves)
    weights = torch.arange(output.numel(), dtype=output.dtype).cos().view(output.shape)
    return output.detach(), torch.autograd.grad((output * weights).sum(), leaves)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 5, 8), (2, 1, 4, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_that_of_pytorch_up_to_rounding(shape, bias):
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(6, 8)] + ([torch.randn(6)] if bias else [])
    output, ours = gradients(linear, *inputs)
    doubled = [value.double() for value in inputs]
    expected, reference = gradients(F.linear, *doubled)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(ours, reference, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_linear_takes_gradients_and_inputs_that_are_not_contiguous():
    x, weight = torch.randn(4, 7, 3).transpose(1, 2), torch.randn(5, 7, requires_grad=True)
    linear(x, weight).sum().backward()  # the sum's gradient is one number, expanded
    torch.testing.assert_close(weight.grad, x.sum((0, 1)).expand(5, 7), rtol=1e-5, atol=1e-5)


def test_linear_gives_no_gradient_that_nobody_wants():
    x, weight = torch.randn(4, 7), torch.randn(5, 7, requires_grad=True)
    output = linear(x, weight, torch.randn(5))
    (gradient,) = torch.autograd.grad(output.sum(), [weight])
    assert x.grad is None and gradient.shape == weight.shape
    assert not linear(x, weight.detach()).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_pytorch(dtype):
    x, weight = torch.randn(4, 7, dtype=dtype), torch.randn(5, 7, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_autocast_is_left_to_pytorch():
    x, weight = torch.randn(4, 7), torch.randn(5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


def test_an_empty_batch_is_fine():
    assert linear(torch.randn(0, 7), torch.randn(5, 7)).shape == (0, 5)


@pytest.mark.parametrize("size", [8, 9])  # 9: pixels are left over, as a convolution allows
def test_patches_are_those_of_a_convolution(size):
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 6, kernel_size=(2, 4), stride=(2, 4)).double()
    ours = copy.deepcopy(plain).float()
    ours.__class__ = PatchConv2d
    images = torch.randn(5, 3, size, 8)
    found, expected = ours(images), plain(images.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in ours.named_parameters():
        wanted = plain.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad.double(), wanted, rtol=1e-4, atol=1e-4)


def vit():
    return build_model(
        "vit_cifar", weights="random", image_size=16, num_classes=10, in_channels=3, seed=0
    ).model


def test_a_model_keeps_its_parameters_and_gives_the_same_up_to_rounding():
    plain, ours = vit(), vit()
    assert use_kernels(ours, "onednn", CPU) == "onednn"
    assert [type(m) for m in ours.modules()].count(Linear) > 10
    assert any(isinstance(module, PatchConv2d) for module in ours.modules())
    assert list(plain.state_dict()) == list(ours.state_dict())
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), plain(images), rtol=1e-4, atol=1e-5)


def test_fisher_information_is_the_same_up_to_rounding():
    plain, ours = vit(), vit()
    use_kernels(ours, "onednn", CPU)
    batches = [(torch.randn(3, 3, 16, 16), torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2]))]
    expected = fisher_diagonal(plain, [b[:2] for b in batches], labels="true")
    found = fisher_diagonal(ours, [b[:2] for b in batches], labels="true")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7 + value.max() * 1e-4)


def test_small_layers_and_overlapping_convolutions_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(3, 3, 3), nn.Conv2d(4, 4, 2, 2, groups=2))
    use_kernels(model, "onednn", CPU)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Conv2d, nn.Conv2d]


def test_attention_written_out_is_the_same_up_to_rounding():
    fused, plain = vit(), vit()
    write_out_attention(plain)
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(plain(images), fused(images), rtol=1e-4, atol=1e-5)


def test_torch_and_auto(monkeypatch):
    for amd, expected in ((True, "onednn"), (False, "torch")):
        monkeypatch.setattr(cpu_kernels, "_is_amd", lambda amd=amd: amd)
        assert use_kernels(nn.Linear(2, 2), "auto", CPU) == expected
        assert use_kernels(nn.Linear(2, 2), "torch", CPU) == "torch"
    assert use_kernels(nn.Linear(2, 2), "auto", torch.device("cuda")) == "torch"


def test_onednn_elsewhere_than_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="kernels = 'onednn' is not allowed on cuda"):
        use_kernels(nn.Linear(2, 2), "onednn", torch.device("cuda"))


@pytest.mark.parametrize(("precision", "fused"), [("fp32", True), ("bf16", False)])
def test_a_run_in_bf16_on_the_cpu_has_its_attention_written_out(precision, fused):
    values = {"dataset": "synthetic", "model": "vit_cifar", "weights": "random", "device": "cpu"}
    config = RunConfig.from_mapping({**values, "precision": precision, "num-clients": 2})
    modules = build_workspace(config).model.modules()
    assert {m.fused_attn for m in modules if hasattr(m, "fused_attn")} == {fused}
