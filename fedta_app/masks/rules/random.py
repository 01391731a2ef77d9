"""Train weights drawn at random: the control for density alone.

Each entry has a number that depends on the seed, on the name of its parameter and on its position
there, whatever other parameters there are.
"""

import torch
from torch import Tensor

from fedta_app.masks.rule import Entries, MaskRule
from fedta_app.seeding import torch_generator


def _random_numbers(entries: Entries) -> Tensor:
    layout = entries.layout
    return torch.cat(
        [
            torch.rand(size, generator=torch_generator(entries.seed, "mask", name))
            for name, size in zip(layout.names, layout.sizes, strict=True)
        ]
    )


RULE = MaskRule("random", _random_numbers, needs_scores=False, takes_threshold=False)
