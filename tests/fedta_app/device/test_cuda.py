import os

import pytest
import torch

from fedta_app.device.cuda import (
    has_bf16,
    repeatable,
    resolve_precision,
    set_float32_policy,
    to_device,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_is_bf16_where_the_card_has_it(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert resolve_precision("auto", GPU) == precision
    assert has_bf16(GPU) == (precision == "bf16")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("flags\t\t: fpu avx512f avx512_bf16", "bf16"), ("Features : fp asimd bf16", "bf16"),
     ("flags : fpu avx512f avx512_bf16x", "fp32"), ("", "fp32")],
)  # fmt: skip
def test_auto_is_bf16_on_a_cpu_that_has_it(
    flags: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedta_app.device.cpu_kernels._cpuinfo", lambda: flags)
    assert resolve_precision("auto", CPU) == precision
    assert has_bf16(CPU) == (precision == "bf16")


def test_a_name_is_itself() -> None:
    for name in ("fp32", "tf32", "bf16", "fp16"):
        assert resolve_precision(name, CPU) == resolve_precision(name, GPU) == name


@pytest.mark.parametrize(
    ("precision", "where", "tf32"),
    [("fp32", GPU, False), ("bf16", GPU, False), ("tf32", GPU, True), ("tf32", CPU, False)],
)
def test_float32_is_ieee_unless_tf32_is_asked_for(
    precision: str, where: torch.device, tf32: bool
) -> None:
    try:
        torch.backends.cudnn.allow_tf32 = True  # as PyTorch has it by itself
        set_float32_policy(precision, where)
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    finally:
        set_float32_policy("fp32", CPU)


def test_repeatable_algorithms_end_with_their_block() -> None:
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]  # or torch would refuse
    for wanted in (True, False):
        with pytest.raises(KeyError), repeatable(GPU, wanted):
            assert torch.are_deterministic_algorithms_enabled() is wanted
            assert torch.utils.deterministic.fill_uninitialized_memory is not wanted
            raise KeyError
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
    with repeatable(CPU):
        assert not torch.are_deterministic_algorithms_enabled()


def test_copies_to_a_device_keep_their_values(device: torch.device) -> None:
    values = torch.arange(1000, dtype=torch.float32)
    moved = to_device(values, device)
    assert moved.device == device and torch.equal(moved.cpu(), values)
