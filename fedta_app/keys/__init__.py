"""All keys of the configuration: everything that the code knows about a key is in its one entry.

An entry says the default, what is allowed, what the key decides (words of
`fedta_app.entry.DECIDES`), the reason for the key in one line and, where that is not always, when
it is read. `fedta_app.config` reads, checks and compares configurations by them.
"""

from dataclasses import dataclass

from fedta_app.keys.algorithm import AlgorithmKeys
from fedta_app.keys.data import DataKeys
from fedta_app.keys.run import RunKeys
from fedta_app.keys.training import TrainingKeys


@dataclass(frozen=True)
class Keys(RunKeys, AlgorithmKeys, TrainingKeys, DataKeys):
    """The keys, in the order of pyproject.toml; a field has `_` where its key has `-`."""
