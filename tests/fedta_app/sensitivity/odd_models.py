"""Models that per-example gradients in a batch get wrong, and the oracle for them.

Each has a well-defined gradient if an example is run alone. Those in `ODD` once had wrong scores
(by up to 28x, or zero) or ended in an error of torch.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fedta_app.sensitivity import fisher_diagonal
from tests.fedta_app.sensitivity.sensitivity_models import CLASSES, Backbone, TokensFirst


def alone(model: nn.Module, batches, output="log_prob") -> dict[str, Tensor]:
    """The oracle: a fresh copy of the model for each example, in evaluation mode."""
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    for images, labels in batches:
        for image, label in zip(images.clone(), labels, strict=True):
            copied = copy.deepcopy(model).eval()
            logits = copied(image[None]).reshape(1, -1)
            if output == "log_prob":
                logits = logits.log_softmax(1)
            logits[0, label].backward()
            for name, parameter in copied.named_parameters():
                if parameter.grad is not None:
                    totals[name] += parameter.grad.to_dense().square()
    return totals


def assert_as_alone(model: nn.Module, batches, oracle: nn.Module | None = None) -> None:
    given = copy.deepcopy(batches)
    expected = alone(oracle or model, batches)
    scores = fisher_diagonal(model, batches, labels="true")
    assert list(scores) == list(expected)
    largest = max(float(score.max()) for score in expected.values())
    for name, score in expected.items():
        # Mathematically zero gradients, like those of a key's bias, are rounding.
        bound = 1e-9 * float(score.max()) + 1e-24 * largest
        torch.testing.assert_close(scores[name], score, rtol=0, atol=bound, msg=name)
    assert all(map(torch.equal, sum(given, ()), sum(batches, ())))


def convolution_batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(6)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), norm, Tokens(), nn.Linear(6, CLASSES))


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm2d(6, affine=True)
    return nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), norm, Tokens(), nn.Linear(6, CLASSES))


class Tokens(nn.Module):
    """The mean over positions, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(2).transpose(1, 2)).tanh().mean(1)


class Recurrent(Backbone):
    cell: type[nn.RNNBase] = nn.RNN

    def __init__(self) -> None:
        super().__init__()
        self.layer = self.cell(6, 6, num_layers=2, batch_first=True, dropout=0.5)

    def mix(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Gated(Recurrent):
    cell = nn.GRU


class LongShort(Recurrent):
    cell = nn.LSTM


class Layered(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.rand(6))


class WritesFreshTensor(Layered):
    def mix(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape, dtype=x.dtype)
        out[:, 1:] = self.layer(x)[:, 1:]
        out[:, 0] = self.scale
        return out.sin()


class ReadsLargest(Layered):
    def mix(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale).tanh() * x.abs().max().item()


class Branches(Layered):
    def mix(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > x.abs().sum() / 4 else torch.sin(3 * x)


class DividesByLargest(Layered):
    def mix(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh() / x.abs().amax()


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        return gradient * scale, (gradient * x).sum((0, 1))


class CustomFunction(Layered):
    def mix(self, x: Tensor) -> Tensor:
        return self.layer(Function.apply(x, self.scale))


class Checkpointed(Layered):
    use_reentrant = False

    def mix(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: self.layer(x).tanh(), x, use_reentrant=self.use_reentrant)


class CheckpointedReentrant(Checkpointed):
    use_reentrant = True


class Caches(Layered):
    """Keeps a table made from a parameter in evaluation mode, as the attention of timm's LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(3))
        self.cache: dict[str, Tensor] = {}
        self.register_buffer("places", torch.tensor([0, 1, 2, 1]), persistent=False)

    def train(self, mode: bool = True):
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def mix(self, x: Tensor) -> Tensor:
        if self.training:
            return self.bend(x, self.biases[self.places])
        if "cpu" not in self.cache:
            self.cache["cpu"] = self.biases[self.places]
        return self.bend(x, self.cache["cpu"])

    def bend(self, x: Tensor, biases: Tensor) -> Tensor:
        return (self.layer(x) + biases[:, None]).tanh()


class CachesInBuffer(Caches):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(4))
        self.fresh = False

    def mix(self, x: Tensor) -> Tensor:
        if not self.fresh:
            self.table.copy_(self.biases[self.places])
            self.fresh = True
        return self.bend(x, self.table)


class Holder:
    def __init__(self) -> None:
        self.values: list[Tensor] = []


class CachesElsewhere(Caches):
    """Keeps the table in an object that no module's attributes show."""

    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder()

    def mix(self, x: Tensor) -> Tensor:
        if not self.holder.values:
            self.holder.values.append(self.biases[self.places].sin())
        return self.bend(x, self.holder.values[0])


class ChangesInput(Backbone):
    def forward(self, images: Tensor) -> Tensor:
        images *= 2
        images[:, 0] += 1
        return super().forward(images)

    def mix(self, x: Tensor) -> Tensor:
        return x.tanh()


class Remembers(Layered):
    """Updates a buffer in evaluation mode too, and uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def mix(self, x: Tensor) -> Tensor:
        self.mean.add_(x.detach().mean((0, 1)))
        return (self.layer(x) + self.mean).tanh()


class SqueezesOne(Layered):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.patch(images).flatten(2).mean(2).squeeze())


class StandardisedWeights(Backbone):
    """Weights normalised by `batch_norm`, as in timm's ScaledStdConv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def mix(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight[None], None, None, training=True)
        return F.linear(x, weight[0]).tanh()


ODD = [
    convolution_batch_norm,
    instance_norm,
    Recurrent,
    Gated,
    LongShort,
    WritesFreshTensor,
    ReadsLargest,
    Branches,
    DividesByLargest,
    CustomFunction,
    Checkpointed,
    CheckpointedReentrant,
    Caches,
    CachesInBuffer,
    CachesElsewhere,
    ChangesInput,
    Remembers,
    SqueezesOne,
    StandardisedWeights,
    TokensFirst,
]
