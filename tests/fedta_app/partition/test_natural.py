"""Clients that a data set has by nature: as many samples each as they happen to have."""

import numpy as np
import pytest

from fedta_app.errors import PartitionError
from fedta_app.partition.schemes import partition

LABELS = np.arange(8) % 3
CLIENTS = [2, 0, 1, 2, 2, 0, 2, 2]


def test_every_client_holds_its_own_samples_whatever_the_seed() -> None:
    for seed in range(3):
        parts = partition(LABELS, 3, scheme="natural", clients=CLIENTS, seed=seed)
        assert [part.tolist() for part in parts] == [[1, 5], [2], [0, 3, 4, 6, 7]]
        assert all(part.dtype == np.int64 for part in parts)


def test_other_schemes_do_not_look_at_the_clients() -> None:
    with_them = partition(LABELS, 3, scheme="iid", clients=CLIENTS)
    without = partition(LABELS, 3, scheme="iid")
    assert all(map(np.array_equal, with_them, without))


@pytest.mark.parametrize(
    ("clients", "number"), [(CLIENTS[:-1], 3), (CLIENTS, 2), (CLIENTS, 4), ([0, 2] * 4, 2)]
)
def test_clients_that_do_not_fit_are_refused(clients: list[int], number: int) -> None:
    with pytest.raises(PartitionError, match="clients must name, for each of the 8 samples"):
        partition(LABELS, number, scheme="natural", clients=clients)


def test_without_clients_there_is_no_natural_partition() -> None:
    with pytest.raises(PartitionError, match="'natural' needs the clients of the samples"):
        partition(LABELS, 3, scheme="natural")
