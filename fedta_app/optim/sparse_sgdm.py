"""SGD with momentum that trains only the entries a mask selects.

The update is that of ``torch.optim.SGD`` (momentum of Sutskever et al., 2013, "On the importance
of initialization and momentum in deep learning", in PyTorch's order of operations), restricted to
the trained entries as the gradient mask of TaLoS asks (Iurada et al., 2025, "Efficient Model
Editing with Task-Localized Sparse Fine-tuning"). Masking ``p.grad`` and calling SGD is not the
same: weight decay and old momentum would still move the frozen entries.
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

from fedta_app.optim.sgd_steps import BITS, Group, Scratch, Slot, foreach_step, mask_, plain_step

Masks: TypeAlias = (
    Mapping[str, Tensor] | Mapping[Parameter, Tensor] | Mapping[str | Parameter, Tensor]
)


class SparseSGDM(Optimizer):
    """SGD with momentum on the entries whose mask is True; every other entry keeps its bits.

    With no mask, or an all-true one, this is ``torch.optim.SGD`` bit for bit, on the plain and on
    the foreach path. With a mask, each trained entry follows SGD bit for bit, decay and momentum
    do not touch the others, and the momentum of a frozen entry is exactly zero. ``step`` never
    modifies a gradient.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor) or of dict
        As for ``torch.optim.SGD``. Pass ``model.named_parameters()`` to give masks by name.
    lr : float or Tensor
        Learning rate, finite and not negative.
    momentum, dampening, weight_decay, nesterov, maximize, foreach
        As for ``torch.optim.SGD``; each parameter group may have its own. Where PyTorch has no
        foreach kernels, as on a CPU, the plain path serves for both: the bits are the same.
    masks : mapping from name or parameter to bool Tensor, optional
        Which entries are trained (True), in the shape of the parameter. A parameter that is not
        listed is trained whole. Masks are kept by reference, on the parameter's device: after
        changing one in place, call `set_masks` again.

    Raises
    ------
    ValueError
        For an option outside its range, and for a mask of the wrong type, shape or name.

    Notes
    -----
    ``step`` skips a tensor whose mask is all False; `skip_frozen_tensors` skips its gradient too.
    Clipping sees dense gradients unless `mask_gradients` is called first. A frozen entry may
    be infinite, -0.0 or denormal (unless ``torch.set_flush_denormal(True)`` abolished denormals);
    a bfloat16 NaN stays NaN, but the CPU may change its payload.
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
        # Neither in the state nor in the groups: torch would cast the one to float and let a
        # checkpoint overwrite the other.
        self._masks: dict[Tensor, Tensor] = {}
        self._frozen: set[Tensor] = set()
        self._skipping = False
        self.set_masks(masks)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_masks", "_frozen", "_skipping", "_scratch")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def add_param_group(self, param_group: Group) -> None:
        """Add a group of parameters, dense until `set_masks`; ValueError for a bad option."""
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def set_masks(self, masks: Masks | None) -> None:
        """Replace all masks: newly frozen momentum becomes zero, newly trained starts from zero.

        Parameters
        ----------
        masks : mapping from name or parameter to bool Tensor, or None
            As for the constructor; None trains everything.

        Raises
        ------
        ValueError
            For a mask of the wrong type, shape or name (nothing is changed then), and inside
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
            For a sparse gradient, and for a learning rate that is negative or not finite.
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

        ``step`` does not need it. Call it before ``clip_grad_norm_`` for the norm of the trained
        entries; before ``GradScaler.unscale_`` too, for no skipped step on account of frozen ones.
        """
        pairs = [(p.grad, mask) for p, mask in self._masks.items() if p.grad is not None]
        self._scratch.mask_all_(pairs)

    @contextmanager
    def skip_frozen_tensors(self) -> Iterator[None]:
        """Compute no gradient, within the block, for tensors whose mask is all False.

        Their ``requires_grad`` is off inside the block and restored after it; training gives the
        same result. If no tensor is left to train, ``backward()`` raises torch's own error.
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
                f"state_dict was saved under masks with fingerprint {saved}, "
                f"and the optimizer has {own}; set the same masks before loading"
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
        named = self._names().items()
        return mask_fingerprint({n: self._masks[p] for n, p in named if p in self._masks})

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
        if not slots:
            return
        # PyTorch has foreach kernels for CUDA; elsewhere one tensor after the other is faster.
        if group["foreach"] is not False and all(slot.param.is_cuda for slot in slots):
            foreach_step(slots, group, self._scratch)
        else:
            plain_step(slots, group, self._scratch)


def mask_fingerprint(masks: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the packed mask bits by name, whatever the order of the names.

    An all-true mask counts as a missing one, since both train everything.
    """
    digest = hashlib.sha256()
    for name in sorted(masks):
        bits = masks[name].detach().cpu().numpy()
        if not bits.all():
            digest.update(f"{name}\x1f{bits.shape}\x1f".encode())
            digest.update(np.packbits(bits).tobytes())
    return digest.hexdigest()


def _numbers_trained(masks: list[Tensor]) -> list[int]:
    """Return how many entries of each mask are True, waiting for a GPU once, not for each."""
    counts = [mask.count_nonzero().to(masks[0].device) for mask in masks]
    return list(map(int, torch.stack(counts).tolist())) if counts else []


def _check_lr(lr: float | Tensor) -> None:
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr has {lr.numel()} elements; a tensor lr must have one")
    if not 0 <= float(lr) < math.inf:
        raise ValueError(f"lr is {float(lr)}; it must be finite and not negative")


def _check_options(options: Group) -> None:
    """Raise ValueError for the first option that SGD, or this class, would not take."""
    _check_lr(options["lr"])
    for name in ("momentum", "weight_decay"):
        if not options[name] >= 0:
            raise ValueError(f"{name} is {options[name]}; it must not be negative")
    if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
        raise ValueError("nesterov is True; it needs momentum > 0 and dampening 0")
    for name in ("fused", "differentiable", "masks"):
        if options.get(name):
            raise ValueError(f"a parameter group sets {name}, which is not a group's option here")


def _check_mask(label: str, param: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask for {label} has dtype {mask.dtype}; it must be torch.bool")
    if mask.shape != param.shape:
        shapes = f"{tuple(mask.shape)}; the parameter has {tuple(param.shape)}"
        raise ValueError(f"the mask for {label} has shape {shapes}")
    if param.dtype not in BITS:
        raise ValueError(f"{label} has dtype {param.dtype}; masks need one of {list(BITS)}")
