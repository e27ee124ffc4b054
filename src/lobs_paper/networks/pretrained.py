"""Weights that somebody else trained, key `model.weights`: torchvision's, a package's, or a state-dict file.

A checkpoint that holds a state dict under a key, and keys that all begin alike (`module.`, `_orig_mod.`), are taken for
what they are if that fits the network, and it is said what was taken.

Loading never runs code from a file: safetensors, or PyTorch's files with tensors alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor, nn

from lobs.base.tensor_files import TensorFile

ACCEPTED = (
    "a state-dict file (.safetensors, .pt, .pth), a name of torchvision's weights for a network of torchvision.models "
    "(IMAGENET1K_V1), or a function that gives a file's path (package.function)"
)
# PyTorch colours some of its messages.
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What a network's state dict is called in a checkpoint that holds others, too.
USUAL = ("state_dict", "model", "model_state_dict")


def load_weights(network: nn.Module, model: Mapping[str, Any]) -> None:
    """Load the weights that a configuration names into a network.

    Args:
        network: built from the same configuration.
        model: group `model`; key `weights` is not None.

    Raises:
        ValueError: the weights cannot be found, downloaded or read, belong to another network, or could be several.
    """
    name = f"model.weights={model['weights']}"
    candidates = _candidates(model)
    fitting = {}
    for key, state in candidates.items():
        stripped = _load(network, state)
        if stripped is not None:
            fitting[key] = stripped
    if len(candidates) == 1:
        key = next(iter(candidates))
        if not fitting:
            raise ValueError(
                f"{name} does not fit model._target_={model['_target_']}: {_misfit(network, candidates[key])}"
            )
    else:
        key = next(iter(fitting), "")
        if len(fitting) != 1 or key not in USUAL:
            raise ValueError(
                f"{name} holds several state dicts, {_first(candidates)}, of which {_first(fitting)} "
                f"fit{'s' * (len(fitting) == 1)} model._target_={model['_target_']}: save the one that is meant in a "
                "file of its own"
            )
        _load(network, candidates[key])  # the others have been tried since
    if key or fitting[key]:
        picked = f"the state dict under {key!r}" if key else "the state dict"
        without = f", its keys without {fitting[key]!r}" if fitting[key] else ""
        print(f"{name}: loaded {picked}{without}")


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """Load a state dict, without the shortest common prefix that must go for it to fit.

    Args:
        network: takes the tensors.
        state: a state dict.

    Returns:
        The prefix, empty where the keys fit as they are; None: it does not fit, and the network is spoilt.
    """
    for prefix in _prefixes(state):
        found = {key[len(prefix) :]: value for key, value in state.items()}
        if _of_another_type(network, found):
            continue
        try:
            network.load_state_dict(found)
        except RuntimeError:
            continue
        return prefix
    return None


def _of_another_type(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Keys of floating-point numbers in the network under which a state dict has others, which PyTorch would cast."""
    keys = [key for key, value in _own(network).items() if value.is_floating_point()]
    return [key for key in keys if key in state and not state[key].is_floating_point()]


def _own(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state dict, in which `get_extra_state` may put anything else."""
    return {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}


def _prefixes(state: Iterable[str]) -> list[str]:
    """Beginnings that all keys share, whole names alone, the shortest (none at all) first."""
    names = [key.split(".")[:-1] for key in state]
    shared = list(takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False)))
    return ["".join(f"{parts[0]}." for parts in shared[:count]) for count in range(len(shared) + 1)]


def _misfit(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Why a state dict does not fit, with the prefix gone that leaves the fewest keys over."""
    expected = network.state_dict().keys()
    prefix = min(_prefixes(state), key=lambda prefix: len({key[len(prefix) :] for key in state} ^ expected))
    found = {key[len(prefix) :]: value for key, value in state.items()}
    # Batch norm does without its counter, which old files lack.
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in found if key not in expected]
    if missing or unexpected:
        without = f" (without their {prefix!r})" if prefix else ""
        return (
            f"of the network's {len(expected)} keys {_first(missing)} {'is' if len(missing) == 1 else 'are'} missing, "
            f"and of the file's {len(found)}{without} {_first(unexpected)} {'is' if len(unexpected) == 1 else 'are'} "
            "unexpected; expected are the keys of the network's `state_dict()`, alone or all after the same prefix"
        )
    for key in _of_another_type(network, found):
        return f"{key!r} holds {found[key].dtype}, expected are floating-point numbers"
    for key, value in _own(network).items():
        if found.get(key, value).shape != value.shape:
            return (
                f"{key!r} has shape {tuple(found[key].shape)} in the file and {tuple(value.shape)} in the network: "
                f"what that was made with is given as model.<argument>=..., say model.num_classes"
            )
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        return " ".join(str(error).split())[:300]
    raise AssertionError("a state dict fits after all")


def _first(names: Iterable[str], count: int = 3) -> str:
    every = list(names)
    rest = f" and {len(every) - count} more" if len(every) > count else ""
    return (", ".join(every[:count]) or "none") + rest


def origin(model: Mapping[str, Any]) -> str:
    """A digest of what a network is and where its weights come from: it tells stale copies.

    Args:
        model: group `model`; key `weights` is not None.

    Returns:
        Of its arguments, and of the bytes of the weights' file, wherever that lies; of torchvision's weights by name.

    Raises:
        ValueError: `weights` is neither a file, nor a name of torchvision's, nor a function.
    """
    rest = {key: value for key, value in model.items() if key != "weights"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    if _by_name(model):
        digest.update(str(model["weights"]).encode())
    else:
        with _file(model).open("rb") as file:
            for chunk in iter(lambda: file.read(2**20), b""):
                digest.update(chunk)
    return digest.hexdigest()


def _by_name(model: Mapping[str, Any]) -> bool:
    """Whether the weights are torchvision's, by their name."""
    weights = str(model["weights"])
    return (
        str(model["_target_"]).startswith("torchvision.models.") and "." not in weights and not Path(weights).is_file()
    )


def _file(model: Mapping[str, Any]) -> Path:
    """The file of weights that are not torchvision's; it exists, unless a function gave it."""
    weights = str(model["weights"])
    if Path(weights).is_file():
        return Path(weights)
    if Path(weights).suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(f"model.weights={weights} does not exist: accepted is {ACCEPTED}")
    return _path_from(weights)


def _candidates(model: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The state dicts that could be meant, by their keys in the file; the key is empty where it holds nothing else."""
    if _by_name(model):
        return {"": _torchvision_state(str(model["_target_"]), str(model["weights"]))}
    return read_states(_file(model))


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts in a file: it is one itself, or it holds some under keys, among other things (a checkpoint).

    Args:
        path: of a safetensors or PyTorch file.

    Returns:
        State dicts by their keys; the key is empty where the file is one itself.

    Raises:
        ValueError: the file cannot be read, or holds no state dict.
    """
    if path.suffix == ".safetensors":
        try:
            return {"": TensorFile(path, "state dict", "save `model.state_dict()` again", note=False).tensors()}
        except ValueError as error:
            raise ValueError(f"model.weights={error}") from None  # begins with the path
    _check_claims(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file that is none, PyTorch raises whatever the first wrong byte leads to
        cause = " ".join(COLOUR.sub("", str(error)).split())[:200]
        raise ValueError(
            f"model.weights={path} is no state dict that is read without running code: save `model.state_dict()`, not "
            f"the model itself ({cause})"
        ) from None
    if _is_state(content):
        return {"": dict(content)}
    if not isinstance(content, Mapping):
        raise ValueError(f"model.weights={path} holds a {type(content).__name__}, expected a state dict of tensors")
    states = {str(key): dict(value) for key, value in content.items() if _is_state(value)}
    if not states:
        raise ValueError(
            f"model.weights={path} holds {_first(map(str, content))}, none of them a state dict: save "
            "`model.state_dict()`, alone or under the key 'state_dict'"
        )
    return states


def _check_claims(path: Path) -> None:
    """Refuse an archive that would become larger than it is: PyTorch never compresses."""
    try:
        with ZipFile(path) as packed:
            claimed = sum(member.file_size for member in packed.infolist())
    except (BadZipFile, OSError):
        return  # of another kind, or damaged
    if claimed > path.stat().st_size:
        raise ValueError(
            f"model.weights={path} claims to hold {claimed} bytes in {path.stat().st_size}, which no file of PyTorch "
            f"does: save `model.state_dict()` with torch.save"
        )


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


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
            f"give model.weights=<that file>, or put it into {torch.hub.get_dir()}/checkpoints"
        ) from None


def _path_from(name: str) -> Path:
    """What a function of a package gives: `package.Class.function` or `package.function`."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1) if all(parts) else ():
        try:
            found: Any = import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for part in parts[split:]:
            found = getattr(found, part, None)
        if callable(found):
            path = found()
            if not isinstance(path, (str, Path)):
                raise ValueError(f"model.weights={name} gives {path!r}, expected is the path of a file")
            return Path(path)
    raise ValueError(f"model.weights={name} is neither a file nor a function that can be imported: {ACCEPTED}")
