"""Random updates, masks and weights, and every mean by its definition, one float at a time."""

import torch
from torch import Tensor

Named = dict[str, Tensor]


def random_updates(seed: int, clients: int, dtype: torch.dtype = torch.float64) -> list[Named]:
    """Return updates of a matrix (larger than SIMD registers, odd-sized) and a scalar."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    return [{"w": draw(7, 11), "b": draw()} for _ in range(clients)]


def random_masks(seed: int, clients: int) -> list[Named]:
    generator = torch.Generator().manual_seed(seed + 1)
    masks = [{"w": torch.rand(7, 11, generator=generator) < 0.4} for _ in range(clients)]
    for mask in masks[1:]:  # "b" is dense for the first client only
        mask["b"] = torch.rand((), generator=generator) < 0.4
    return masks


def random_weights(seed: int, clients: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed + 2)
    return torch.randint(1, 600, (clients,), generator=generator).tolist()


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int64)


def same_bits(first: Named, second: Named) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(bits(first[name]), bits(second[name])) for name in first
    )


def loop(updates: list[Named], masks: list[Named], weights: list[float], exponent: float) -> Named:
    """Return the masked mean by its definition, one Python float at a time."""
    result = {name: torch.zeros_like(value) for name, value in updates[0].items()}
    for name, out in result.items():
        for place in range(out.numel()):
            total = covered = 0.0
            for update, mask, weight in zip(updates, masks, weights, strict=True):
                if name not in mask or mask[name].flatten()[place]:
                    total += weight * update[name].flatten()[place].item()
                    covered += weight
            if covered:
                divisor = covered**exponent * sum(weights) ** (1 - exponent)
                out.view(-1)[place] = total / divisor
    return result


def elected_loop(updates: list[Named], masks: list[Named], weights: list[float]) -> Named:
    result = {name: torch.zeros_like(value) for name, value in updates[0].items()}
    for name, out in result.items():
        for place in range(out.numel()):
            votes = [
                (weight, update[name].flatten()[place].item())
                for update, mask, weight in zip(updates, masks, weights, strict=True)
                if name not in mask or mask[name].flatten()[place]
            ]
            elected = sum(weight * value for weight, value in votes)
            agreeing = [(weight, value) for weight, value in votes if value * elected > 0]
            if agreeing:
                mean = sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing)
                out.view(-1)[place] = mean
    return result


def close(first: Named, second: Named) -> None:
    torch.testing.assert_close(dict(first), dict(second))
