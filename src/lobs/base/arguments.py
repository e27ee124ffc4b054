"""Checks of arguments' types; the message names the argument, what was given and what is accepted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import nn


def check_module(value: object, name: str = "model") -> None:
    """Refuse what is no network.

    Args:
        value: given.
        name: of the argument.

    Raises:
        TypeError: it is something else, or TorchScript in whole or part; of a result the message names its network.
    """
    if not isinstance(value, nn.Module):
        kind = type(value).__name__
        own = isinstance(getattr(value, "model", None), nn.Module)
        got = f"{kind}: give its .model" if own else f"{value!r:.80} ({kind})"
        raise TypeError(f"{name} must be a torch.nn.Module, got {got}")
    for own, module in value.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"{own!r} of {name}" if own else name
            raise TypeError(f"{what} is TorchScript, whose layers cannot be reached: give the module it was made from")


def check_number(name: str, value: object, what: str) -> None:
    """Refuse what is neither None nor a real number.

    Args:
        name: of the argument.
        value: given.
        what: it is, for the message.

    Raises:
        TypeError: it is something else.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be {what}, a number; got {value!r} ({type(value).__name__})")


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number, or too small.

    Args:
        name: of the argument.
        value: given.
        least: that is accepted.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, {least} or more; got {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_folder(folder: object) -> Path | None:
    """A folder for finished parts as a path; it may not exist yet.

    Args:
        folder: given.

    Returns:
        The path; None for None.

    Raises:
        TypeError: it is no path.
        ValueError: it is a file, or in one, or empty.
    """
    if folder is None:
        return None
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be a path, got {folder!r}")
    if not os.fspath(folder):
        raise ValueError(
            "folder='' would fill the working directory: name a folder for the finished parts of this call"
        )
    path = Path(folder)
    there = next((part for part in (path, *path.parents) if part.exists()), path)
    if there.exists() and not there.is_dir():
        what = "a file" if there == path else f"in {str(there)!r}, which is a file"
        raise ValueError(f"folder={str(path)!r} is {what}: give a folder for the finished parts of this call")
    return path


def check_names(name: str, values: Iterable[str]) -> list[str]:
    """A list of names or patterns.

    Args:
        name: of the argument.
        values: given.

    Returns:
        The list.

    Raises:
        TypeError: it is a single string, no iterable, or holds anything but strings.
    """
    if isinstance(values, str):
        raise TypeError(f"{name} must be a list of names, got the single string {values!r}")
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of layer names or patterns, got {values!r}")
    values = list(values)
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a list of layer names or patterns, got {value!r} among them")
    return values


def check_by_layer(name: str, values: object, pairs: bool) -> None:
    """Refuse what is neither None nor a mapping from layer names to densities.

    Args:
        name: of the argument.
        values: given.
        pairs: whether each is (least, most) instead of one density.

    Raises:
        TypeError: it is something else; the message names the entry.
    """
    if values is None:
        return
    expected = "(least, most) densities" if pairs else "densities"
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must map layer names to {expected}, got a {type(values).__name__}")
    for key, value in values.items():
        numbers = value if pairs else (value,)
        right = isinstance(key, str) and isinstance(numbers, (tuple, list))
        if not right or any(isinstance(one, bool) or not isinstance(one, Real) for one in numbers):
            raise TypeError(f"{name} must map layer names to {expected}, got {key!r}: {value!r}")
