"""Small models for the tests of `fedta_app.sensitivity`, and a loop over examples as the oracle."""

import torch
from timm.layers import RmsNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5


def vit(size: int = 16, **options) -> VisionTransformer:
    options = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, **options}
    return VisionTransformer(img_size=size, num_classes=CLASSES, **options)


def resampled_vit() -> VisionTransformer:
    model = vit(16)
    model.set_input_size(img_size=(32, 24))
    return model


class ResidualBlock(nn.Module):
    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(2, outer), nn.GroupNorm(2, outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inner, outer, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=2, groups=2),
        nn.Flatten(),
        nn.LazyLinear(10),
        nn.Tanh(),
        nn.Linear(10, CLASSES),
    )


def resnet() -> nn.Module:
    blocks = ResidualBlock(3, 4), ResidualBlock(4, 6)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES))


FAST = {
    "vit": (vit, (16, 16)),
    "vit resampled": (resampled_vit, (32, 24)),
    "vit resampling": (lambda: vit(dynamic_img_size=True, reg_tokens=2), (24, 32)),
    "vit layer scale": (lambda: vit(init_values=0.3, no_embed_class=True), (16, 16)),
    "vit average pool": (lambda: vit(class_token=False, global_pool="avg"), (16, 16)),
    "vit attention pool": (lambda: vit(class_token=False, global_pool="map"), (16, 16)),
    "vit rms norm": (lambda: vit(norm_layer=RmsNorm), (16, 16)),
    "cnn": (cnn, (16, 16)),
    "resnet": (resnet, (16, 16)),
}


class Backbone(nn.Module):
    """Tokens [examples, 4, 6] of an image, to be used by odd models, and logits of features."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 8, stride=8)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.mix(self.patch(images).flatten(2).mT).mean(1))


class Shared(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def mix(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Tied(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def mix(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Custom(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(3, 6))

    def mix(self, x: Tensor) -> Tensor:
        return torch.sin(x @ self.left) @ self.right


class WeightNorm(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))

    def mix(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))


class TokensFirst(Backbone):
    """With four examples, its first dimension has the right size and the wrong meaning."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def mix(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x.transpose(0, 1))).transpose(0, 1)


class MultiHead(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(6, 2, batch_first=True)

    def mix(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


class Hidden(torch.autograd.Function):
    """A scale whose use torch functions do not show."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale):
        return x * scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        return gradient * scale, (gradient * x).sum()


class Escaping(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def mix(self, x: Tensor) -> Tensor:
        return Hidden.apply(x, self.scale)


class BatchNormalized(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.norm.running_var.uniform_(0.5, 2.0)

    def mix(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(x))


SLOW = [Shared, Tied, Custom, TokensFirst, MultiHead, Escaping, BatchNormalized]


def prepare(make, size, dtype=torch.float32, *, seed=0, count=7):
    """A model away from the symmetries of its initialisation, and two batches."""
    torch.manual_seed(seed)
    model = make().to(dtype)
    images = torch.randn(count, 3, *size, dtype=dtype)
    model.eval()(images[:1])  # lazy layers
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    labels = torch.randint(CLASSES, (count,))
    return model, [(images[:4], labels[:4]), (images[4:], labels[4:])]


def per_example(model, batches, output="log_prob") -> dict[str, Tensor]:
    """The oracle: gradients [examples, *shape], one backward pass for each example."""
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = []
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            logits = model(image[None])[0]
            value = -F.cross_entropy(logits, label) if output == "log_prob" else logits[label]
            rows.append(torch.autograd.grad(value, list(parameters.values())))
    return {
        name: torch.stack(column)
        for name, column in zip(parameters, zip(*rows, strict=True), strict=True)
    }


def naive(model, batches, output="log_prob") -> dict[str, Tensor]:
    return {name: g.square().sum(0) for name, g in per_example(model, batches, output).items()}


def assert_scores_close(actual, expected, tolerance) -> None:
    assert list(actual) == list(expected)
    largest = max(score.max() for score in expected.values())
    for name, score in expected.items():
        assert actual[name].shape == score.shape
        assert actual[name].dtype == score.dtype
        # A gradient that is zero up to rounding (no such tensor here) has no relative error.
        assert score.max() > 1e-12 * largest, name
        error = (actual[name] - score).abs().max() / score.max()
        assert error < tolerance, f"{name}: {error}"


def flat(scores: dict[str, Tensor]) -> Tensor:
    return torch.cat([score.flatten() for score in scores.values()])
