"""Random small models, in random order of their layers, against each example alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.fedta_app.sensitivity.odd_models import assert_as_alone
from tests.fedta_app.sensitivity.sensitivity_models import CLASSES

WIDTH, SIDE = 4, 2  # four channels and four positions: a batch of four looks like either


class OnTokens(nn.Module):
    """A layer (B, T, C) -> (B, T, C) or (T, B, C) -> (T, B, C) on images (B, C, H, W)."""

    def __init__(self, layer: nn.Module, *, tokens_first: bool = False) -> None:
        super().__init__()
        self.layer, self.tokens_first = layer, tokens_first

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if self.tokens_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.layer(tokens)
        if self.tokens_first:
            tokens = tokens.transpose(0, 1)
        return tokens.transpose(1, 2).reshape(x.shape)


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.layer = nn.GRU(WIDTH, WIDTH, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Affine(nn.Module):
    """A bare scale and shift for each channel and position."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.randn(WIDTH, SIDE, SIDE)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Residual(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = 2 * self.layer(x).tanh()  # the sum overwrites what no gradient needs
        y += x
        return y


def batch_norm(dimensions: int) -> nn.Module:
    norm = (nn.BatchNorm1d, nn.BatchNorm2d)[dimensions - 1](WIDTH)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


LAYERS = {
    "convolution": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
    "grouped": lambda: nn.Conv2d(WIDTH, WIDTH, 1, groups=2),
    "batch norm": lambda: batch_norm(2),
    "batch norm of tokens": lambda: OnTokens(batch_norm(1)),
    "instance norm": lambda: nn.InstanceNorm2d(WIDTH, affine=True),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "layer norm": lambda: OnTokens(nn.LayerNorm(WIDTH)),
    "layer norm, tokens first": lambda: OnTokens(nn.LayerNorm(WIDTH), tokens_first=True),
    "linear": lambda: OnTokens(nn.Linear(WIDTH, WIDTH)),
    "linear, tokens first": lambda: OnTokens(nn.Linear(WIDTH, WIDTH), tokens_first=True),
    "linear over the width": lambda: nn.Linear(SIDE, SIDE),
    "attention": lambda: OnTokens(Attention(True)),
    "attention, tokens first": lambda: OnTokens(Attention(False), tokens_first=True),
    "recurrent": lambda: OnTokens(Recurrent(True)),
    "recurrent, tokens first": lambda: OnTokens(Recurrent(False), tokens_first=True),
    "affine": Affine,
    "affine and relu": lambda: nn.Sequential(Affine(), nn.ReLU(inplace=True)),
}
NAMES = st.lists(st.sampled_from(["tied", *LAYERS]), min_size=1, max_size=5)


def random_model(names: list[str], residual: bool) -> nn.Module:
    tied = OnTokens(nn.Linear(WIDTH, WIDTH))
    layers = [tied if name == "tied" else LAYERS[name]() for name in names]
    if residual:
        layers = [Residual(layer) for layer in layers]
    stem, head = nn.Conv2d(3, WIDTH, 2, stride=2), nn.Linear(WIDTH, CLASSES)
    pool = nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(stem, *layers, pool, head)


@given(
    names=NAMES,
    residual=st.booleans(),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=2),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_equals_each_example_alone(names, residual, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = random_model(names, residual).double().eval()
    batches = [
        (
            torch.randn(size, 3, 2 * SIDE, 2 * SIDE, dtype=torch.float64, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for size in sizes
    ]
    assert_as_alone(model, batches)
