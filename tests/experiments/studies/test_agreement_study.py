import pytest

from experiments.studies.agreement import study
from fedta_app.config import RunConfig


@pytest.mark.parametrize("clients", [1, 4])
def test_a_divisor_lies_between_one_and_the_number_of_clients(clients: int) -> None:
    config = RunConfig.from_mapping(
        {
            "head": "ridge", "mask-rule": "agreement", "num-clients": clients, "partition": "iid",
            "calibration-examples": 8, "threads": 1,
        }
    )  # fmt: skip
    found = study(config)
    assert 1 <= found["divisor"]["1%"] <= found["divisor"]["99%"] <= clients
    assert 0 < found["jaccard with least-sensitive"] <= 1
    alone = found["share with a divisor of 1"] == found["jaccard with least-sensitive"] == 1
    assert alone == (clients == 1)
