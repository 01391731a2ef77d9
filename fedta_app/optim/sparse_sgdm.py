"""SGD with momentum that trains only the entries a mask selects.

TaLoS (Iurada et al., "Efficient Model Editing with Task-Localized Sparse Fine-tuning", ICLR 2025,
arXiv 2504.02620) fine-tunes with a gradient mask. Here the mask restricts the whole update of
``torch.optim.SGD``: masking ``p.grad`` alone is not enough, since weight decay and old momentum
would still move the frozen entries.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer, ParamsT

from fedta_app.optim.sgd_steps import BITS, Group, Scratch, Slot, mask_, sgd_step

Masks: TypeAlias = (
    Mapping[str, Tensor] | Mapping[Parameter, Tensor] | Mapping[str | Parameter, Tensor]
)


class SparseSGDM(Optimizer):
    """SGD with momentum on the entries whose mask is True; every other entry keeps its bits.

    A trained entry gets the bits that ``torch.optim.SGD`` gives it, in every precision and with the
    same `foreach`. The momentum of a frozen entry is exactly zero. ``step`` modifies no gradient.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor) or of dict
        As for ``torch.optim.SGD``. Pass ``model.named_parameters()`` to give masks by name.
    lr : float or Tensor
        Learning rate, finite and not negative.
    momentum, dampening, weight_decay, nesterov, maximize, foreach
        As for ``torch.optim.SGD``; each parameter group may have its own. With `foreach` None,
        operations on lists of tensors are used where all parameters lie on CUDA.
    masks : mapping from name or parameter to bool Tensor, optional
        Which entries are trained (True), in the shape of the parameter. A parameter that is not
        listed is trained whole. After changing a mask in place, call `set_masks` again.

    Raises
    ------
    ValueError
        If an option is out of range, or a mask has the wrong type, shape or name.

    Notes
    -----
    ``step`` skips a tensor whose mask is all False; `skip_frozen_tensors` skips its gradient too.
    Gradient clipping sees frozen entries too, unless `mask_gradients` is called first. A frozen
    entry may be infinite, -0.0 or denormal (unless ``torch.set_flush_denormal(True)`` is on). A
    frozen bfloat16 NaN stays NaN, but the CPU may change its payload.

    Examples
    --------
    The gradient is 1 everywhere, and only the first entry is trained:

    >>> import torch
    >>> from fedta_app.optim import SparseSGDM
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> masks = {"weight": torch.tensor([True, False])}
    >>> optimizer = SparseSGDM([("weight", weight)], lr=0.5, weight_decay=0.1, masks=masks)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> weight.tolist()
    [0.44999998807907104, 2.0]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        masks: Masks | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)
        # Masks are kept out of `state`, which torch casts to float, and out of `param_groups`,
        # which a checkpoint overwrites.
        self._masks: dict[Tensor, Tensor] = {}
        self._frozen: set[Tensor] = set()
        self._skipping = False
        self.set_masks(masks)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_masks", "_frozen", "_skipping", "_scratch")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state; options that its release of torch did not have are off."""
        super().__setstate__(state)
        for group in self.param_groups:
            group |= {"nesterov": False, "maximize": False, "foreach": None} | group

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, trained whole until `set_masks`."""
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def set_masks(self, masks: Masks | None) -> None:
        """Replace all masks, and set the momentum of newly frozen entries to zero.

        Parameters
        ----------
        masks : mapping from name or parameter to bool Tensor, or None
            As for the constructor; None trains everything.

        Raises
        ------
        ValueError
            If a mask has the wrong type, shape or name (nothing is changed then), or inside
            `skip_frozen_tensors`.
        """
        if self._skipping:
            raise ValueError("masks cannot be set inside skip_frozen_tensors()")
        checked = self._resolve(masks or {})
        trained = dict(zip(checked, _numbers_trained(list(checked.values())), strict=True))
        self._masks = {p: mask for p, mask in checked.items() if trained[p] < mask.numel()}
        self._frozen = {p for p in self._masks if trained[p] == 0}
        self._scratch = Scratch()
        self._mask_momentum()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step on every parameter that has a gradient; return the closure's loss.

        Raises
        ------
        ValueError
            If a gradient is sparse, or the learning rate is negative or not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                self._step_group(group)
        return loss

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of frozen entries in place, infinities and NaN included.

        ``step`` does not need it. Call it before ``clip_grad_norm_``, so that the norm is that of
        the trained entries, and before ``GradScaler.unscale_``, so that no step is skipped because
        a frozen entry overflowed.
        """
        pairs = [(p.grad, mask) for p, mask in self._masks.items() if p.grad is not None]
        self._scratch.mask_all_(pairs)

    @contextmanager
    def skip_frozen_tensors(self) -> Iterator[None]:
        """Turn off ``requires_grad``, within the block, of tensors whose mask is all False.

        Training gives the same result. If no tensor is left to train, ``backward()`` raises
        torch's own error.
        """
        switched_off = [param for param in self._frozen if param.requires_grad]
        before, self._skipping = self._skipping, True
        try:
            for param in switched_off:
                param.requires_grad_(False)
            yield
        finally:
            for param in switched_off:
                param.requires_grad_(True)
            self._skipping = before

    def state_dict(self) -> dict[str, Any]:
        """Return SGD's state and the fingerprint of the masks, not the masks themselves."""
        return {**super().state_dict(), "mask_fingerprint": self._fingerprint()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of this class or of ``torch.optim.SGD``, and mask its momentum.

        Raises
        ------
        ValueError
            If the state was saved under other masks than the present ones.
        """
        saved, own = state_dict.get("mask_fingerprint"), self._fingerprint()
        if saved not in (None, own):
            raise ValueError(
                "state_dict was saved under other masks; set the same masks before loading"
            )
        super().load_state_dict(dict(state_dict))
        self._mask_momentum()

    def _names(self) -> dict[str, Tensor]:
        """Return the parameters by name, or by position where they came without names."""
        named: dict[str, Tensor] = {}
        for group in self.param_groups:
            positions = map(str, range(len(named), len(named) + len(group["params"])))
            named.update(zip(group.get("param_names", positions), group["params"], strict=True))
        return named

    def _fingerprint(self) -> str:
        """Return the sha256 of the masks by name; an all-True mask counts as none."""
        digest = hashlib.sha256()
        for name, param in sorted(self._names().items()):
            if param in self._masks:
                bits = self._masks[param].cpu().numpy()
                digest.update(f"{name}\x1f{bits.shape}\x1f".encode())
                digest.update(np.packbits(bits).tobytes())
        return digest.hexdigest()

    def _resolve(self, masks: Masks) -> dict[Tensor, Tensor]:
        """Return the masks by parameter, checked, on the parameters' devices."""
        named = self._names() if "param_names" in self.param_groups[0] else {}
        held = {param for group in self.param_groups for param in group["params"]}
        resolved: dict[Tensor, Tensor] = {}
        for key, mask in masks.items():
            param = named.get(key) if isinstance(key, str) else key
            label = repr(key) if isinstance(key, str) else f"a parameter of {tuple(key.shape)}"
            if param is None or param not in held:
                hint = "" if named else " (names need named_parameters() as params)"
                raise ValueError(f"masks has {label}, which the optimizer does not hold{hint}")
            if param in resolved:
                raise ValueError(f"masks has {label} twice, by name and by parameter")
            _check_mask(label, param, mask)
            resolved[param] = mask.to(param.device)
        return resolved

    @torch.no_grad()
    def _mask_momentum(self) -> None:
        for param, mask in self._masks.items():
            buffer = self.state[param].get("momentum_buffer") if param in self.state else None
            if buffer is not None:
                # A copy: a loaded buffer may still belong to the optimizer it came from.
                self.state[param]["momentum_buffer"] = mask_(buffer.clone(), mask)

    def _step_group(self, group: Group) -> None:
        _check_lr(group["lr"])
        slots = [
            Slot(p, p.grad, self._masks.get(p), self.state[p] if group["momentum"] else {})
            for p in group["params"]
            if p.grad is not None and p not in self._frozen
        ]
        if any(slot.grad.is_sparse for slot in slots):
            raise ValueError("a gradient is sparse; SparseSGDM takes dense gradients only")
        sgd_step(slots, group, self._scratch)


def _numbers_trained(masks: list[Tensor]) -> list[int]:
    """Return the number of True entries of each mask, with one wait for the GPU for all."""
    counts = [mask.count_nonzero().to(masks[0].device) for mask in masks]
    return list(map(int, torch.stack(counts).tolist())) if counts else []


def _check_lr(lr: float | Tensor) -> None:
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr has {lr.numel()} elements; a tensor lr must have one")
    if not 0 <= float(lr) < math.inf:
        raise ValueError(f"lr is {float(lr)}; it must be finite and not negative")


def _check_options(options: Group) -> None:
    """Raise ValueError if an option is out of range or not supported."""
    _check_lr(options["lr"])
    for name in ("momentum", "weight_decay"):
        if not options[name] >= 0:
            raise ValueError(f"{name} is {options[name]}; it must not be negative")
    if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
        raise ValueError("nesterov is True; it needs momentum > 0 and dampening 0")
    for name in ("fused", "differentiable", "masks"):
        if options.get(name):
            raise ValueError(f"a parameter group sets {name}; this option is not supported")


def _check_mask(label: str, param: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask for {label} has dtype {mask.dtype}; it must be torch.bool")
    if mask.shape != param.shape:
        shapes = f"{tuple(mask.shape)}; the parameter has {tuple(param.shape)}"
        raise ValueError(f"the mask for {label} has shape {shapes}")
    if param.dtype not in BITS:
        raise ValueError(f"{label} has dtype {param.dtype}; masks need one of {list(BITS)}")
