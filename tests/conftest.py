import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tests are many and small: threads would only wait for each other

UNPACK = Path(__file__).parents[2] / "shared" / "data" / "unpack.py"


@pytest.fixture(scope="session")
def cifar100_dir(request: pytest.FixtureRequest) -> Path:
    """A directory with the real CIFAR-100, unpacked once into pytest's cache; skips without it."""
    if not UNPACK.exists():
        pytest.skip("no CIFAR-100 beside the repository")
    directory = request.config.cache.mkdir("cifar100")
    subprocess.run([sys.executable, UNPACK, directory], check=True)
    return directory
