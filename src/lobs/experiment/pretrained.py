"""Weights that somebody else trained, key `model.weights`: torchvision's, a package's, or a state-dict file.

Loading never runs code from a file: safetensors, or PyTorch's files with tensors alone.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ACCEPTED = (
    "a state-dict file (.safetensors, .pt, .pth), a name of torchvision's weights for a network of torchvision.models "
    "(IMAGENET1K_V1), or a function that gives a file's path (package.function)"
)


def load_weights(network: nn.Module, model: Mapping[str, Any]) -> None:
    """Load the weights that a configuration names into a network.

    Args:
        network: built from the same configuration.
        model: group `model`; key `weights` is not None.

    Raises:
        ValueError: the weights cannot be found, downloaded or read, or belong to another network.
    """
    state = _state(model)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:300]
        raise ValueError(
            f"model.weights={model['weights']} does not fit model._target_={model['_target_']}: {cause}"
        ) from None


def origin(model: Mapping[str, Any]) -> str:
    """A digest of a network's configuration and, where `weights` is a file, of its bytes: it tells stale copies."""
    digest = hashlib.sha256(json.dumps(dict(model), sort_keys=True).encode())
    path = Path(str(model["weights"]))
    if path.is_file():
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(2**20), b""):
                digest.update(chunk)
    return digest.hexdigest()


def _state(model: Mapping[str, Any]) -> dict[str, Tensor]:
    weights = str(model["weights"])
    if Path(weights).is_file():
        return read_state(Path(weights))
    if Path(weights).suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(f"model.weights={weights} does not exist: accepted is {ACCEPTED}")
    if str(model["_target_"]).startswith("torchvision.models.") and "." not in weights:
        return _torchvision_state(str(model["_target_"]), weights)
    return read_state(_path_from(weights))


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file; Lightning's checkpoints hold one under ``state_dict``.

    Args:
        path: of a safetensors or PyTorch file.

    Returns:
        The tensors by name.

    Raises:
        ValueError: the file cannot be read, or holds anything but tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model.weights={path} is no state dict that is read without running code: save `model.state_dict()`, not "
            f"the model itself ({cause})"
        ) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"model.weights={path} holds a {type(state).__name__}, expected a state dict of tensors")
    return dict(state)


def _torchvision_state(target: str, name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    function = target.rpartition(".")[2]
    try:
        known = get_model_weights(function)
    except ValueError as error:
        raise ValueError(f"model._target_={target}: torchvision has no weights for it: {error}") from None
    if name not in known.__members__:
        raise ValueError(f"model.weights={name} is not accepted for {target}: {', '.join(known.__members__)}")
    entry = known[name]
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model.weights={name} of {target} cannot be downloaded ({cause}): get {entry.url} on another machine and "
            f"give model.weights=<that file>"
        ) from None


def _path_from(name: str) -> Path:
    """What a function of a package gives: `package.Class.function` or `package.function`."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for part in parts[split:]:
            found = getattr(found, part, None)
        if callable(found):
            return Path(found())
    raise ValueError(f"model.weights={name} is neither a file nor a function that can be imported: {ACCEPTED}")
