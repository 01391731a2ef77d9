import copy
import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torchvision.transforms import Normalize

from experiments.pretraining.crops import colour_jitter, resized_crops, solarise
from experiments.pretraining.dino import Dino, DinoOptions, ProjectionHead, dino_loss, encode

OPTIONS = DinoOptions(outputs=16, hidden=8, bottleneck=4, local_crops=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_vit(size: int = 32) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(size, 4, embed_dim=16, depth=2, num_heads=2, num_classes=2)


def some_images(number: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, 32, 32), generator=generator(), dtype=torch.uint8)


def test_crops_have_the_size_and_the_range_asked_for():
    crops = resized_crops(some_images(), size=16, scale=(0.1, 0.4), generator=generator())
    assert crops.shape == (6, 3, 16, 16) and crops.dtype == torch.float32
    assert crops.min() >= 0 and crops.max() <= 1
    again = resized_crops(some_images(), size=16, scale=(0.1, 0.4), generator=generator())
    other = resized_crops(some_images(), size=16, scale=(0.1, 0.4), generator=generator(1))
    assert torch.equal(crops, again) and not torch.equal(crops, other)
    same = resized_crops(
        some_images(1).repeat(8, 1, 1, 1), size=16, scale=(0.1, 0.4), generator=generator()
    )
    assert len({crop.numpy().tobytes() for crop in same}) == 8  # each image by itself


def test_a_crop_shows_one_box_inside_the_image():
    # The values of a ramp are coordinates: what a crop shows can be read off its pixels.
    ramp = torch.arange(32, dtype=torch.uint8) * 8
    columns = ramp.expand(200, 1, 32, 32)
    images = torch.cat([columns, columns.transpose(2, 3)], dim=1)
    crops = resized_crops(images, size=32, scale=(0.1, 0.4), generator=generator()) * 255 / 8
    x, y = crops[:, 0, 0], crops[:, 1, :, 0]  # of the first row, of the first column
    torch.testing.assert_close(crops[:, 0], x[:, None].expand(-1, 32, -1), atol=1e-3, rtol=0)
    torch.testing.assert_close(crops[:, 1], y[:, :, None].expand(-1, -1, 32), atol=1e-3, rtol=0)
    assert crops.min() >= 0 and crops.max() <= 31.001
    # inside, away from clamped borders, pixels are equally far apart: side / 32
    width, height = (part[:, 8:24].diff(dim=1).median(dim=1).values for part in (x, y))
    assert 0.4 < (width < 0).float().mean() < 0.6  # mirrored
    area, ratio = width.abs() * height, width.abs() / height
    assert area.min() > 0.099 and area.max() < 0.401 and area.max() - area.min() > 0.2
    assert 3 / 4 - 0.01 < ratio.min() < 0.85 and 1.2 < ratio.max() < 4 / 3 + 0.01


def test_a_crop_of_all_of_the_area_is_cut_to_its_ratio():
    # The box has a ratio that is never exactly 1, and what would lie outside is left out of it.
    ramp = torch.arange(32, dtype=torch.uint8) * 8
    columns = ramp.expand(40, 1, 32, 32)
    images = torch.cat([columns, columns.transpose(2, 3)], dim=1)
    crops = resized_crops(images, size=32, scale=(1.0, 1.0), generator=generator()) * 255 / 8
    x, y = crops[:, 0, 0], crops[:, 1, :, 0]
    shares = [part[:, 8:24].diff(dim=1).median(dim=1).values.abs() for part in (x, y)]
    larger, smaller = torch.maximum(*shares), torch.minimum(*shares)
    torch.testing.assert_close(larger, torch.ones(40), atol=1e-4, rtol=0)
    assert math.sqrt(3 / 4) - 1e-3 < smaller.min() and smaller.max() < 1


def test_a_crop_of_one_colour_has_it():
    flat = torch.full((4, 3, 32, 32), 51, dtype=torch.uint8)
    crops = resized_crops(flat, size=8, scale=(0.1, 1.0), generator=generator())
    torch.testing.assert_close(crops, torch.full((4, 3, 8, 8), 0.2))


def test_colours_change_in_the_shares_asked_for():
    images = torch.rand(2000, 3, 4, 4, generator=generator())
    changed = colour_jitter(images, generator())
    assert changed.min() >= 0 and changed.max() <= 1
    grey = (changed - changed.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 0.17 < grey.float().mean() < 0.23
    same = (changed - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert 0.13 < same.float().mean() < 0.19  # a fifth, less those that turned grey


def test_colours_that_do_not_change_them_are_the_images():
    images = torch.rand(50, 3, 4, 4, generator=generator())
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grey": 0.0}
    torch.testing.assert_close(colour_jitter(images, generator(), **still), images)
    for name in ("brightness", "contrast", "saturation", "hue"):
        other = colour_jitter(images, generator(), **(still | {name: 0.3}))
        assert (other - images).abs().max() > 0.05


def test_grey_is_the_luma_whatever_the_hue():
    images = torch.rand(5, 3, 4, 4, generator=generator())
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1, keepdim=True)
    options = {"brightness": 0.0, "contrast": 0.0, "hue": 0.5, "grey": 1.0}
    grey = colour_jitter(images, generator(), **options)
    torch.testing.assert_close(grey, luma.expand_as(grey), atol=2e-3, rtol=0)


def test_solarising_inverts_the_bright_values():
    images = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).repeat(400, 1, 1, 1)
    result = solarise(images, 0.25, generator()).flatten(1)
    inverted = torch.tensor([0.2, 0.5, 1 - 0.9])
    hit = (result - inverted).abs().amax(dim=1) < 1e-6
    assert 0.2 < hit.float().mean() < 0.3
    assert torch.equal(result[~hit], images.flatten(1)[~hit])


@pytest.mark.parametrize("size", [16, 32, 48])
def test_other_sizes_are_encoded_as_by_timms_own_resampling(size):
    model = small_vit()
    images = torch.randn(3, 3, size, size, generator=generator())
    other = small_vit(size)
    other.load_state_dict(checkpoint_filter_fn(model.state_dict(), other))
    expected = other.forward_head(other.forward_features(images), pre_logits=True)
    torch.testing.assert_close(encode(model, images), expected)
    encode(model, images).sum().backward()
    assert model.pos_embed.grad is not None and model.pos_embed.grad.abs().sum() > 0


def naive_loss(student, teacher, centre, student_temperature, teacher_temperature):
    """Algorithm 1 of the paper, crop by crop and image by image."""
    losses = []
    for t, teacher_crop in enumerate(teacher):
        for s, student_crop in enumerate(student):
            if s == t:
                continue
            for ours, theirs in zip(student_crop, teacher_crop, strict=True):
                target = torch.exp((theirs - centre) / teacher_temperature)
                target = target / target.sum()
                given = torch.exp(ours / student_temperature)
                losses.append(-(target * torch.log(given / given.sum())).sum())
    return torch.stack(losses).mean()


def test_the_loss_against_the_papers_equation():
    student = torch.randn(5, 3, 7, generator=generator(), dtype=torch.float64)
    teacher = torch.randn(2, 3, 7, generator=generator(1), dtype=torch.float64)
    centre = torch.randn(7, generator=generator(2), dtype=torch.float64)
    loss, targets = dino_loss(
        student, teacher, centre, student_temperature=0.3, teacher_temperature=0.2
    )
    torch.testing.assert_close(loss, naive_loss(student, teacher, centre, 0.3, 0.2))
    torch.testing.assert_close(targets.sum(dim=-1), torch.ones(2, 3, dtype=torch.float64))
    teacher.requires_grad_()
    student.requires_grad_()
    loss, _ = dino_loss(student, teacher, centre, student_temperature=1, teacher_temperature=1)
    loss.backward()
    assert teacher.grad is None and student.grad is not None


def test_the_head_gives_cosines():
    head = ProjectionHead(16, OPTIONS)
    features = torch.randn(5, 16, generator=generator())
    cosines = head(features)
    expected = torch.cosine_similarity(head.mlp(features)[:, None], head.directions[None], dim=2)
    torch.testing.assert_close(cosines, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(features), cosines)


@pytest.fixture
def dino() -> Dino:
    model = small_vit()
    return Dino(model, 16, Normalize((0.5,) * 3, (0.25,) * 3), OPTIONS)


def test_views_are_two_large_crops_and_some_small_ones(dino):
    large, small = dino.views(some_images(), generator())
    assert large.shape == (12, 3, 24, 24) and small.shape == (18, 3, 12, 12)
    assert min(large.min(), small.min()) >= -2 and max(large.max(), small.max()) <= 2


def test_a_step_trains_the_student_and_moves_the_centre(dino):
    before = copy.deepcopy(dino)
    loss, figures = dino(some_images(), torch.zeros(6), generator())
    loss.backward()
    assert all(
        p.grad is None for p in [*dino.teacher.parameters(), *dino.teacher_head.parameters()]
    )
    unused = {"head.weight", "head.bias"}
    assert {n for n, p in dino.student.named_parameters() if p.grad is None} == unused
    assert 0 <= figures["entropy"] <= figures["spread"] + 1e-6 <= math.log(16) + 1e-5
    large, _ = dino.views(some_images(), generator())
    seen = before.teacher_head(encode(before.teacher, large))
    torch.testing.assert_close(dino.centre, 0.1 * seen.mean(dim=0).detach())


def test_the_last_layer_is_still_at_first(dino):
    for progress, still in ((0.0, True), (0.5, False)):
        dino.zero_grad()
        dino(some_images(), torch.zeros(6), generator())[0].backward()
        dino.before_step(progress)
        assert (dino.student_head.directions.grad is None) == still


@pytest.mark.parametrize(("progress", "momentum"), [(0.0, 0.99), (0.5, 0.995), (1.0, 1.0)])
def test_the_teacher_follows_the_student(dino, progress, momentum):
    old = dino.teacher.cls_token.clone()
    with torch.no_grad():
        dino.student.cls_token += 1.0
        dino.student_head.directions += 1.0
    directions = dino.teacher_head.directions.clone()
    dino.after_step(progress)
    torch.testing.assert_close(dino.teacher.cls_token, old + (1 - momentum))
    torch.testing.assert_close(dino.teacher_head.directions, directions + (1 - momentum))
