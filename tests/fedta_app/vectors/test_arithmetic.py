"""The norm that algorithms measure, whatever the number of threads."""

import pytest
import torch

from fedta_app.vectors.arithmetic import squared_norm


@pytest.mark.parametrize("size", [0, 1, 2**14, 2**14 + 1, 200_000])
def test_the_squared_norm_is_that_of_a_sum_in_float64(size: int) -> None:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0))
    assert squared_norm(vector) == pytest.approx(float(vector.double().square().sum()), rel=1e-12)


def test_the_number_of_threads_changes_no_bit() -> None:
    vector = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    found, plain = set(), set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(squared_norm(vector))
        plain.add(float(vector.square().sum()))
    torch.set_num_threads(before)
    assert len(found) == 1
    assert len(plain) > 1  # why it is not torch's own sum
