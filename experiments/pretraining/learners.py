"""What `vit_cifar` can be pre-trained by: DINO, and cross-entropy as its control."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import Normalize

from experiments.pretraining.crops import colour_jitter, resized_crops
from experiments.pretraining.dino import Dino, DinoOptions
from fedta_app.device.cpu_kernels import write_out_attention
from fedta_app.models.building import build_model, num_features
from fedta_app.seeding import derive_seed

METHODS = ("dino", "supervised")


class Supervised(nn.Module):
    """The control: cross-entropy on the labels, of crops as DINO's large ones, at full size."""

    def __init__(self, model: nn.Module, normalise: Normalize) -> None:
        super().__init__()
        self.result = model
        self.normalise = normalise

    def forward(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch of uint8 images."""
        crops = resized_crops(
            images, size=images.shape[-1], scale=DinoOptions.global_scale, generator=generator
        )
        crops = colour_jitter(crops, generator).float()  # bfloat16 under autocast
        logits: Tensor = self.result(self.normalise(crops)).float()
        return functional.cross_entropy(logits, labels, label_smoothing=0.1), {}

    def before_step(self, progress: float) -> None:
        """Do nothing."""

    def after_step(self, progress: float) -> None:
        """Do nothing."""


def new_backbone(classes: int, seed: int) -> VisionTransformer:
    """Return `vit_cifar` with random weights, its attention written out."""
    built = build_model(
        "vit_cifar", weights="random", image_size=0, num_classes=classes, in_channels=3, seed=seed
    )
    assert isinstance(built.model, VisionTransformer)
    write_out_attention(built.model)
    return built.model


def new_learner(
    method: str, classes: int, normalise: Normalize, *, seed: int, options: DinoOptions
) -> Dino | Supervised:
    """Return what is trained by one of `METHODS`: a module whose call gives the loss of a batch."""
    model = new_backbone(classes, seed)
    if method == "supervised":
        return Supervised(model, normalise)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "dino", "head"))
        return Dino(model, num_features(model), normalise, options)
