"""Reading weights files, without running code in them, and loading them into a model.

A file may hold the flat backbone of the official DINO release (Caron et al., "Emerging Properties
in Self-Supervised Vision Transformers", ICCV 2021), its full checkpoint (the teacher is taken), a
timm state dict, or either of them under ``state_dict`` or ``model``, in .pth or .safetensors. Their
names may have the prefixes of any stack of wrappers: parallel training, `torch.compile`, Lightning.
"""

import argparse
import hashlib
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from fedta_app.errors import ModelError, first_line
from fedta_app.files import expanded

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_WRAPPERS = ("teacher", "state_dict", "model")
_PREFIXES = ("module.", "model.", "backbone.", "teacher.")
# What PyTorch puts into a name wherever it wraps a module; no module of a model is called so.
_INSERTED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_HUB_SECONDS = 5.0  # timeout; without it the retries of the hub's client take most of a minute


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the names, types, shapes and bits of a state dict, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_path(weights: str) -> Path | None:
    """Return the path in a value of the key `weights`; None for "pretrained" and "random".

    Raises
    ------
    ConfigError, ModelError
        If there is no such file, or its suffix is not that of a weights file.
    """
    if weights in ("pretrained", "random"):
        return None
    path = expanded(weights, f"weights = {weights!r}")
    _check_path(path)
    return path


def _check_path(path: Path) -> None:
    if not path.is_file():
        raise ModelError(
            f"weights = {str(path)!r} is not allowed: there is no such file; weights is "
            "'pretrained', 'random', or the path of a weights file"
        )
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"weights = {str(path)!r} is not allowed: a weights file ends in {', '.join(SUFFIXES)}"
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a weights file, without running code in it.

    Parameters
    ----------
    path : Path
        A .pth, .pt or .bin file of tensors, or a .safetensors file.

    Returns
    -------
    dict of str to Tensor
        Tensors by name, without the prefixes ``module.``, ``_orig_mod.``, ``model.``,
        ``backbone.`` and ``teacher.``, in any order. A prefix that more than half of the names
        have is removed, and the tensors without it (a projection head, a student, a counter) are
        left out.

    Raises
    ------
    ModelError
        If the file is missing, has another suffix, is corrupt, holds no tensors, or holds several
        that would have the same name.
    """
    _check_path(path)
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except Exception as error:  # whatever a corrupt file makes the readers raise
        raise ModelError(
            f"weights = {str(path)!r} cannot be read as tensors alone, so the file is corrupt or "
            f"holds other objects ({first_line(error)})"
        ) from error
    try:
        tensors = _without_prefixes(_unwrap(content))
    except ValueError as error:
        raise ModelError(
            f"weights = {str(path)!r} is not allowed: the file holds {error}, of which only one "
            "can be meant; save the state dict of one model"
        ) from error
    if not tensors:
        raise ModelError(f"weights = {str(path)!r} is not allowed: the file holds no named tensors")
    return tensors


def _torch_load(path: Path) -> Any:
    # A full checkpoint of DINO has its training options in a Namespace, which runs no code.
    torch.serialization.add_safe_globals([argparse.Namespace])
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(content: Any) -> dict[str, Tensor]:
    """Return the tensors inside the dictionaries of a training script, or none.

    Raises
    ------
    ValueError
        If there are several such dictionaries; the message names them.
    """
    if not isinstance(content, Mapping):
        return {}
    inner = {key: found for key in _WRAPPERS if (found := _unwrap(content.get(key)))}
    if len(inner) > 1:
        raise ValueError(" and ".join(map(repr, inner)))
    for tensors in inner.values():
        return tensors
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names that they have in their own model.

    Raises
    ------
    ValueError
        If two of them would have the same name; the message names them.
    """
    names: dict[str, str] = {}  # from the name so far to the name in the file
    for name in tensors:
        _put(names, ".".join(part for part in name.split(".") if part not in _INSERTED), name)
    if any(name.startswith("teacher.") for name in names):  # beside it, a student as large
        names = {k: v for k, v in names.items() if not k.startswith("student.")}
    while prefix := _most_frequent_prefix(names):
        kept: dict[str, str] = {}
        for short, name in names.items():
            _put(kept, short.removeprefix(prefix), name)
        names = {k: v for k, v in kept.items() if f"{prefix}{k}" in names}
    return {short: tensors[name] for short, name in names.items()}


def _most_frequent_prefix(names: Collection[str]) -> str:
    """Return the prefix of a wrapper that more than half of the names have, "" without one."""
    for prefix in _PREFIXES:
        if 2 * sum(name.startswith(prefix) for name in names) > len(names):
            return prefix
    return ""


def _put(names: dict[str, str], short: str, name: str) -> None:
    if short in names:
        raise ValueError(f"{names[short]!r} and {name!r}")
    names[short] = name


def fetch_from_hub(hub_id: str, filename: str = "model.safetensors") -> Path:
    """Return the local path of a file of the Hugging Face hub, downloaded unless it is cached.

    Raises
    ------
    ModelError
        If the hub does not answer within 5 seconds, or has no such file.
    """
    repository, _, revision = hub_id.partition("@")
    where: dict[str, Any] = {
        "repo_id": repository, "filename": filename, "revision": revision or None
    }  # fmt: skip
    cached = huggingface_hub.try_to_load_from_cache(**where)
    if isinstance(cached, str):
        return Path(cached)
    try:
        url = huggingface_hub.hf_hub_url(**where)
        huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_SECONDS)  # asks once, no retries
        downloaded = huggingface_hub.hf_hub_download(**where)
    except Exception as error:  # each version of the client has its own network errors
        page = f"https://huggingface.co/{repository}"
        if isinstance(error, (EntryNotFoundError, RepositoryNotFoundError)):
            problem = f"the Hugging Face hub has no {filename} of {hub_id}"
        else:
            problem = f"{hub_id} could not be downloaded ({first_line(error)})"
        raise ModelError(
            f"weights = 'pretrained' is not available: {problem}; download a weights file where "
            f"there is a network ({page}) and pass its path as weights"
        ) from error
    return Path(downloaded)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, head: str, source: str) -> bool:
    """Load a state dict into the model, and return whether it had a head that fits.

    As in timm, position embeddings are resampled to the model's grid, and the weights of a first
    layer for colour images are summed for grey ones. A head of another shape is left out; all
    other names and shapes must be those of the model.

    Parameters
    ----------
    model : nn.Module
        Changed in place; unchanged if the weights do not fit.
    state : mapping of str to Tensor
        As `read_weights` returns it.
    head : str
        Name of the classifier module.
    source : str
        What the error message calls the weights.

    Raises
    ------
    ModelError
        If a parameter is missing, left over, of another shape or not finite.
    """
    wanted = model.state_dict()
    fitted = _convert(model, state, wanted, source)
    head_names = [name for name in wanted if name.startswith(f"{head}.")]
    head_loaded = all(n in fitted and fitted[n].shape == wanted[n].shape for n in head_names)
    fitted = {n: t for n, t in fitted.items() if head_loaded or not n.startswith(f"{head}.")}
    if not head_loaded:
        wanted = {n: t for n, t in wanted.items() if n not in head_names}
    _check_fit(fitted, wanted, source)
    model.load_state_dict(fitted, strict=head_loaded)
    return head_loaded


def _convert(
    model: nn.Module, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """Return the weights in the model's own layout, for its number of input channels."""
    patches = "patch_embed.proj.weight"
    if patches in state and patches in wanted and state[patches].ndim == 4:
        theirs, ours = state[patches].shape[-2:], wanted[patches].shape[-2:]
        if theirs != ours:  # timm would resample them without a message
            raise ModelError(
                f"{source} does not fit the model: its patches are {theirs[0]} x {theirs[1]} "
                f"pixels and the model's {ours[0]} x {ours[1]}"
            )
    module = inspect.getmodule(type(model))
    convert = getattr(module, "checkpoint_filter_fn", None)
    try:
        converted = dict(convert(dict(state), model)) if convert else dict(state)
    except Exception as error:  # the conversion may raise anything for foreign files
        raise ModelError(f"{source} does not fit the model: {first_line(error)}") from error
    first = _first_layer(model)
    if first in converted and first in wanted:
        converted[first] = _adapt_channels(converted[first], wanted[first])
    return converted


def _first_layer(model: nn.Module) -> str:
    """Return the name of the weight of the first convolution, "" if there is none."""
    names = (name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    first = next(names, "")
    return first and f"{first}.weight"


def _adapt_channels(weight: Tensor, wanted: Tensor) -> Tensor:
    colour = weight.ndim == 4 and weight.shape[1] == 3
    if not colour or wanted.shape[1] == 3:
        return weight
    adapted: Tensor = adapt_input_conv(wanted.shape[1], weight)
    return adapted


def _check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    problems = {
        "missing": [name for name in wanted if name not in state],
        "left over": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
        "not finite": [name for name in state if not torch.isfinite(state[name]).all()],
    }
    found = [
        f"{len(names)} {problem} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise ModelError(f"{source} does not fit the model: {'; '.join(found)}")
