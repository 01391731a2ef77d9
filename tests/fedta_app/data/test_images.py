import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from fedta_app.data.images import random_crop_flip, to_input

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


def _images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=_generator(99))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _find(image: Tensor, result: Tensor, padding: int) -> tuple[int, int, bool]:
    """Return the one crop and flip of torchvision that turns the image into the result."""
    padded = reference.pad(image, [padding] * 4)
    matches = []
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = reference.crop(padded, top, left, *image.shape[1:])
            if torch.equal(crop, result):
                matches.append((top, left, False))
            if torch.equal(reference.hflip(crop), result):
                matches.append((top, left, True))
    assert len(matches) == 1
    return matches[0]


@pytest.mark.parametrize("shape", [(300, 3, 8, 8), (300, 1, 6, 9)])
def test_every_result_is_a_crop_and_flip_of_torchvision(shape: tuple[int, ...]) -> None:
    images = _images(*shape)
    before = images.clone()
    results = random_crop_flip(images, padding=1, flip=True, generator=_generator(0))
    assert results.dtype == torch.uint8 and torch.equal(images, before)
    found = [_find(image, result, 1) for image, result in zip(images, results, strict=True)]
    # 18 possibilities, each about 17 times: crop and flip are independent and uniform
    _, times = np.unique(np.array(found), axis=0, return_counts=True)
    assert len(times) == 18 and times.max() < 40


def test_larger_padding_reaches_every_offset() -> None:
    images = _images(400, 2, 7, 7)
    results = random_crop_flip(images, padding=3, flip=False, generator=_generator(1))
    found = np.array(
        [_find(image, result, 3) for image, result in zip(images, results, strict=True)]
    )
    assert set(found[:, 0]) == set(range(7)) == set(found[:, 1]) and not found[:, 2].any()
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.2


def test_neither_crop_nor_flip_leaves_images_as_they_are() -> None:
    images = _images(5, 3, 4, 4)
    same = random_crop_flip(images, padding=0, flip=False, generator=_generator(0))
    assert torch.equal(same, images) and same.data_ptr() != images.data_ptr()


def test_the_generator_decides() -> None:
    images = _images(50, 3, 8, 8)
    draws = [
        random_crop_flip(images, padding=2, flip=True, generator=_generator(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    generator = _generator(0)
    first, second = (
        random_crop_flip(images, padding=2, flip=True, generator=generator) for _ in range(2)
    )
    assert torch.equal(first, draws[0]) and not torch.equal(first, second)


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_sees_the_same(device: str) -> None:
    images = _images(40, 3, 8, 8)
    options = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "size": 12}
    crops = [
        random_crop_flip(place, padding=2, flip=True, generator=_generator(0))
        for place in (images, images.to(device))
    ]
    assert crops[1].device.type == device and torch.equal(crops[0], crops[1].cpu())
    torch.testing.assert_close(
        to_input(crops[1], **options).cpu(), to_input(crops[0], **options), rtol=1e-5, atol=1e-5
    )


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.mark.parametrize("size", [5, 16, 31, 32, 33, 64])
def test_resizing_and_normalising_as_torchvision_does(size: int) -> None:
    images = _images(3, 3, 32, 32)
    result = to_input(images, size=size, mean=MEAN, std=STD)
    resized = reference.resize(
        images.float() / 255, [size, size], InterpolationMode.BICUBIC, antialias=True
    )
    expected = reference.normalize(resized, list(MEAN), list(STD))
    assert result.dtype == torch.float32 and result.shape == (3, 3, size, size)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [5, 8, 20])
def test_resizing_as_pillow_does(size: int) -> None:
    image = _images(1, 1, 8, 8)
    result = to_input(image, size=size, mean=(0.0,), std=(1 / 255,))[0, 0]
    pixels = Image.fromarray(image[0, 0].numpy().astype(np.float32))
    expected = np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-2)


def test_one_channel_serves_three() -> None:
    images = _images(2, 1, 8, 8)
    result = to_input(images, size=8, mean=MEAN, std=STD)
    for channel in range(3):
        expected = (images[:, 0].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(result[:, channel].double(), expected, rtol=1e-5, atol=1e-6)
    assert to_input(images, size=8, mean=MEAN[:1], std=STD[:1]).shape == (2, 1, 8, 8)


def test_lower_precision_is_the_rounded_float32() -> None:
    images = _images(2, 3, 8, 8)
    exact = to_input(images, size=12, mean=MEAN, std=STD)
    half = to_input(images, size=12, mean=MEAN, std=STD, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(half, exact.bfloat16())


def test_bad_arguments_get_a_sentence() -> None:
    images = _images(2, 3, 8, 8)
    with pytest.raises(ValueError, match="padding must be at least 0 pixels, got -1"):
        random_crop_flip(images, padding=-1, flip=False, generator=_generator(0))
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        to_input(images, size=0, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="3-channel images, got 1 and 1"):
        to_input(images, size=8, mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="got 3 and 1"):
        to_input(images, size=8, mean=MEAN, std=(0.5,))
