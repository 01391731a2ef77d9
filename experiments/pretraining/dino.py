"""Self-distillation without labels: DINO for vision transformers of small images.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (ICCV 2021): a student
sees crops of all sizes, a teacher (a moving average of the student) the large ones only, and the
student is trained to give what the teacher gives on another crop of the image. Centring and
sharpening of the teacher's output keep both from collapsing.
"""

import copy
import math
from dataclasses import dataclass

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import Normalize

from experiments.pretraining.crops import colour_jitter, resized_crops, solarise


@dataclass(frozen=True)
class DinoOptions:
    """Settings of DINO; temperatures and centre as in the paper, the rest for a short run.

    Attributes
    ----------
    outputs, hidden, bottleneck : int
        Widths of the projection head: of its output, its two hidden layers, and the layer that is
        normalised.
    local_crops : int
        Small crops per image, beside the two large ones.
    global_size, local_size : int
        Pixels per side. Small crops have a quarter of the pixels of large ones (in the paper 0.18);
        crops below the 32 px of the images cost little more than half, so there are more epochs.
    global_scale, local_scale : tuple of float
        Share of the image's area that a crop shows.
    student_temperature, teacher_temperature : float
    centre_momentum : float
    teacher_momentum : float
        Of the first step; it rises to 1 on a cosine schedule. The paper's 0.996 is for runs ten
        times as long: its teacher would be mostly the random weights of the start.
    """

    outputs: int = 1024
    hidden: int = 512
    bottleneck: int = 128
    local_crops: int = 4
    global_size: int = 24
    local_size: int = 12
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.1, 0.4)
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    centre_momentum: float = 0.9
    teacher_momentum: float = 0.99


def encode(model: VisionTransformer, images: Tensor) -> Tensor:
    """Return the features of a vision transformer for square images of any multiple of its patch.

    Position embeddings are resampled to the grid of the images as timm does, with gradients.

    Parameters
    ----------
    model : VisionTransformer
        With a class token.
    images : tensor, shape (N, channels, size, size)

    Returns
    -------
    tensor, shape (N, d)
        The input of the head.
    """
    patches = model.patch_embed.proj(images)
    tokens = patches.flatten(2).transpose(1, 2)
    positions = resample_abs_pos_embed(model.pos_embed, list(patches.shape[2:]))
    assert model.cls_token is not None
    first = model.cls_token.expand(len(tokens), -1, -1)
    hidden = model.norm(model.blocks(torch.cat([first, tokens], dim=1) + positions))
    pooled: Tensor = model.forward_head(hidden, pre_logits=True)
    return pooled


class ProjectionHead(nn.Module):
    """Three layers, then the cosine to each of `outputs` directions.

    The cosine is the paper's last layer with normalised weights of fixed length; in float32,
    because it is divided by temperatures far below 1.
    """

    def __init__(self, features: int, options: DinoOptions) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(features, options.hidden),
            nn.GELU(),
            nn.Linear(options.hidden, options.hidden),
            nn.GELU(),
            nn.Linear(options.hidden, options.bottleneck),
        )
        self.directions = nn.Parameter(torch.empty(options.outputs, options.bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.directions)

    def forward(self, features: Tensor) -> Tensor:
        """Return the cosines, (N, outputs), for features (N, d)."""
        with torch.autocast(features.device.type, enabled=False):
            small = functional.normalize(self.mlp(features.float()), dim=1)
            return functional.linear(small, functional.normalize(self.directions, dim=1))


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of the student to the teacher, over pairs of different crops.

    Parameters
    ----------
    student : tensor, shape (crops, N, outputs)
        The large crops come first.
    teacher : tensor, shape (large crops, N, outputs)
    centre : tensor, shape (outputs,)
        Subtracted from the teacher's outputs.
    student_temperature, teacher_temperature : float

    Returns
    -------
    loss : tensor, scalar
        Mean over images and over all pairs of a teacher's and a student's crop, less the pairs of
        a crop with itself.
    targets : tensor, shape of `teacher`
        The teacher's distributions, without gradients.
    """
    targets = ((teacher - centre) / teacher_temperature).softmax(dim=-1).detach()
    scores = (student / student_temperature).log_softmax(dim=-1)
    pairs = -torch.einsum("tnk,snk->ts", targets, scores) / student.shape[1]
    same = torch.eye(*pairs.shape, dtype=torch.bool, device=pairs.device)
    return pairs[~same].mean(), targets


class Dino(nn.Module):
    """Student, teacher, their heads and the centre; `state_dict` is all that a resume needs.

    Parameters
    ----------
    backbone : VisionTransformer
        Becomes the student. The teacher starts as its copy.
    features : int
        Their number d, the input of the projection head.
    normalise : Normalize
        What standardises the channels of images in [0, 1].
    options : DinoOptions
    """

    centre: Tensor

    def __init__(
        self, backbone: VisionTransformer, features: int, normalise: Normalize, options: DinoOptions
    ) -> None:
        super().__init__()
        self.options = options
        self.normalise = normalise
        self.student = backbone
        self.student_head = ProjectionHead(features, options)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(options.outputs))

    def views(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return large crops, (2 N, ...), and small ones, (local_crops N, ...), normalised."""
        options = self.options

        def crops(number: int, size: int, scale: tuple[float, float]) -> Tensor:
            copies = images.repeat(number, 1, 1, 1)
            cut = resized_crops(copies, size=size, scale=scale, generator=generator)
            return colour_jitter(cut, generator)  # bfloat16 under autocast

        first, second = crops(2, options.global_size, options.global_scale).chunk(2)
        large = torch.cat([first, solarise(second, 0.2, generator)])
        small = crops(options.local_crops, options.local_size, options.local_scale)
        return self.normalise(large.float()), self.normalise(small.float())

    def forward(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch of uint8 images, and figures that would show a collapse.

        `entropy` is the mean entropy of the teacher's distributions, `spread` that of their mean.
        A collapse to one output has both near 0, a collapse to the uniform distribution both near
        log(outputs). Labels are ignored.
        """
        options, number = self.options, len(images)
        large, small = self.views(images, generator)
        with torch.no_grad():
            teacher = self.teacher_head(encode(self.teacher, large)).view(2, number, -1)
        seen = torch.cat([encode(self.student, large), encode(self.student, small)])
        student = self.student_head(seen).view(2 + options.local_crops, number, -1)
        with torch.autocast(images.device.type, enabled=False):
            loss, targets = dino_loss(
                student,
                teacher,
                self.centre,
                student_temperature=options.student_temperature,
                teacher_temperature=options.teacher_temperature,
            )
        with torch.no_grad():
            self.centre.lerp_(teacher.mean(dim=(0, 1)), 1 - options.centre_momentum)
            figures = {
                "entropy": float(_entropy(targets).mean()),
                "spread": float(_entropy(targets.mean(dim=(0, 1)))),
            }
        return loss, figures

    def before_step(self, progress: float) -> None:
        """Hold the last layer still in the first tenth, as the paper does in its first epoch."""
        if progress < 0.1:
            self.student_head.directions.grad = None

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student; `progress` is the share of the steps done."""
        momentum = 1 - (1 - self.options.teacher_momentum) * 0.5 * (
            1 + math.cos(math.pi * progress)
        )
        ours = [*self.teacher.parameters(), *self.teacher_head.parameters()]
        theirs = [*self.student.parameters(), *self.student_head.parameters()]
        for mine, new in zip(ours, theirs, strict=True):
            mine.lerp_(new, 1 - momentum)

    @property
    def result(self) -> VisionTransformer:
        """The teacher, whose features are the better ones."""
        return self.teacher


def _entropy(distributions: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(distributions).sum(dim=-1)
    return entropy
