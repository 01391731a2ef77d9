"""The frozen blocks of a transformer, whose outputs are computed once per machine.

Blocks that are never trained give the same tokens for the same image, so these are cached on disk
(`fedta_app.cache`). An image's tokens depend in their last bits on the batch that it is computed
in. They are therefore always computed in the same chunks of a split, each by one thread, whether
they are then kept on disk or in memory, and on whichever engine.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedta_app.cache import Array, ArrayCache
from fedta_app.config import RunConfig
from fedta_app.data.images import CODE
from fedta_app.data.loading import ImageSet
from fedta_app.device.cpus import usable_cpus
from fedta_app.device.cuda import resolve_precision, to_device
from fedta_app.models.building import features
from fedta_app.models.weights_files import state_sha256
from fedta_app.progress import counting, phase
from fedta_app.runs.provenance import code_parts, device_name, versions
from fedta_app.training.datasets import machine_cache
from fedta_app.training.passes import autocast

_CHUNK = 64  # images; another number gives other last bits
_VERSION = 1  # raise it where blocks are computed in another way than before


@dataclass(frozen=True)
class Views:
    """Augmented views of the training images.

    Attributes
    ----------
    number : int
        V, how many there are of each image.
    about : mapping
        What decides how they are drawn: JSON values.
    draw : callable
        Given uint8 images (B, C, H, W), the number of the view and that of the chunk, returns the
        augmented images.
    """

    number: int
    about: Mapping[str, Any]
    draw: Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Stem:
    """The frozen blocks on a device, and the cache of their tokens.

    Attributes
    ----------
    blocks : nn.Module
        Maps pixels (B, C, H, W) to tokens (B, T, d).
    key : mapping
        What decides the tokens, besides the split and the weights.
    """

    blocks: nn.Module
    device: torch.device
    precision: str
    cache: ArrayCache
    key: Mapping[str, Any]

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tensor:
        """Return float32 tokens (B, T, d) of pixels (B, C, H, W)."""
        with autocast(self.precision, self.device):
            tokens: Tensor = self.blocks(pixels)
        return tokens.float()

    def cached(
        self,
        split: str,
        images: ImageSet,
        pixels: Callable[[Tensor], Tensor],
        views: Views | None = None,
    ) -> ImageSet:
        """Return the images of a split with their tokens in place of their uint8 pixels.

        Parameters
        ----------
        pixels : callable
            Returns the stem's input for uint8 images.
        views : Views, optional
            By default, the images are taken as they are.

        Returns
        -------
        ImageSet
            Of float32 tokens (N, T, d), or (N, V, T, d) of V views, in the memory of the CPU; the
            labels stay on their device.
        """
        # Hashed here and not once, because other weights may have been loaded since.
        key: dict[str, Any] = {"split": split, "blocks": state_sha256(self.blocks.state_dict())}
        if views:
            key |= {"views": views.number, **views.about}

        def tokens(chunk: Tensor, start: int, view: int) -> Tensor:
            if views:
                chunk = views.draw(chunk, view, start // _CHUNK)
            return self.tokens(pixels(chunk))

        number = views.number if views else None
        return self._rows(key, images, tokens, "frozen blocks", views=number)

    def features(self, split: str, tokens: ImageSet, model: nn.Module, head: str) -> ImageSet:
        """Return the images of a split with their features (N, d) in place of their tokens.

        Parameters
        ----------
        tokens : ImageSet
            What `cached` returned for the split.
        model : nn.Module
            The blocks behind the stem, with the weights that they shall have.
        head : str
            Name of its head, which no feature depends on.
        """
        model.eval()
        state = {k: v for k, v in model.state_dict().items() if not k.startswith(f"{head}.")}
        key = {
            "kind": "features",
            "split": split,
            "blocks": state_sha256(self.blocks.state_dict()),
            "model-state": state_sha256(state),
        }

        @torch.inference_mode()
        def compute(chunk: Tensor, start: int, view: int) -> Tensor:
            return features(model, to_device(chunk, self.device))

        return self._rows(key, tokens, compute, "features")

    def _rows(
        self,
        key: Mapping[str, Any],
        images: ImageSet,
        compute: Callable[[Tensor, int, int], Tensor],
        what: str,
        views: int | None = None,
    ) -> ImageSet:
        """Return the images with what is computed of each, from the cache or in chunks.

        Parameters
        ----------
        compute : callable
            Given images (B, ...), the position of the first, and the number of the view.
        views : int, optional
            V, for rows of (V, ...).
        """
        each = compute(images.images[:1], 0, 0).shape[1:]
        jobs = [(v, n) for v in range(views or 1) for n in range(0, len(images), _CHUNK)]

        def fill(array: Array) -> None:
            def chunk(job: tuple[int, int]) -> None:
                view, start = job
                found = compute(images.images[start : start + _CHUNK], start, view)
                where = array[start : start + _CHUNK]
                (where if views is None else where[:, view])[:] = found.float().cpu().numpy()

            with phase(what), counting("images", len(jobs) * _CHUNK) as done:
                for _ in _each(chunk, jobs, self.device):
                    done.add(_CHUNK)

        shape = (len(images), *(() if views is None else (views,)), *each)
        array = self.cache.array({**self.key, **key}, shape, "float32", fill)
        return ImageSet(torch.from_numpy(array), images.labels)


def make_stem(
    blocks: nn.Module, config: RunConfig, device: torch.device, about: Mapping[str, Any]
) -> Stem:
    """Return the stem of a run; `about` is what else decides its tokens."""
    precision = resolve_precision(config.precision, device)
    made = {"kind": "tokens", "version": _VERSION, "pixels-code": CODE}
    key = {**made, **machine_key(config, device), **about}
    return Stem(blocks, device, precision, machine_cache(config), key)


def machine_key(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Return what decides the last bits of a model's outputs, besides weights and inputs."""
    used, cuda = versions(), device.type == "cuda"
    return {
        "model": config.model,
        "model-code": code_parts(config).get(f"model {config.model}", ""),  # of a file of one's own
        "precision": resolve_precision(config.precision, device),
        "processor": device_name(device) if cuda else torch.backends.cpu.get_cpu_capability(),
        "torch": used["torch"],
        "timm": used["timm"],
    }


def one_view(tokens: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return tokens (B, T, d), of one view each if there are several, (B, V, T, d)."""
    if tokens.ndim < 4:
        return tokens
    assert generator is not None, "only training images have views"
    number, views = tokens.shape[:2]
    return tokens[torch.arange(number), torch.randint(0, views, (number,), generator=generator)]


def _each(
    compute: Callable[[tuple[int, int]], None], jobs: list[tuple[int, int]], device: torch.device
) -> Iterator[None]:
    """Do the jobs: on a CPU side by side, each by one thread, so that their number is no matter.

    All CPUs take part, whatever `threads` is: it happens once per machine, and others wait for it.
    """
    if device.type != "cpu":
        yield from map(compute, jobs)
        return
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(
        usable_cpus(), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        try:
            yield from pool.map(compute, jobs)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # the pool's threads set it for all
