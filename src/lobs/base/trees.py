"""Tensors in tuples, lists, mappings and dataclasses, nested at will: what they hold, copies, and some rows of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def parts_of(value: object) -> list[object] | None:
    """What a container holds; None where it is none."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (tuple, list)):
        return list(value)
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, entry.name) for entry in fields(value)]
    return None


def leaves(value: object) -> Iterator[object]:
    """Everything that is no container, in its order; of objects of other classes their attributes' leaves.

    Args:
        value: anything.

    Yields:
        Tensors, numbers, texts and what else there is.
    """
    pending, seen = [value], set()
    while pending:
        each = pending.pop()
        parts = None if isinstance(each, Tensor) else parts_of(each)
        if parts is None and not isinstance(each, (Tensor, type)) and hasattr(each, "__dict__"):
            parts = list(vars(each).values())
        if not parts:  # an empty container says something, too
            yield each
        elif id(each) not in seen:
            seen.add(id(each))
            pending.extend(reversed(parts))


def with_parts(function: Callable[[object], object], value: Any) -> Any:
    """A container of the same kind that holds a function's results; what is no container stays as it is."""
    if isinstance(value, Mapping):
        parts = {key: function(part) for key, part in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return parts
        made = copy.copy(value)
        made.update(parts)
        return made
    if isinstance(value, (tuple, list)):
        results: list[Any] = [function(part) for part in value]
        return type(value)(*results) if hasattr(value, "_fields") else type(value)(results)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{e.name: function(getattr(value, e.name)) for e in fields(value) if e.init})
    return value


def is_object(value: object) -> bool:
    """Whether something moves between devices as one piece (a packed sequence, a graph)."""
    return hasattr(value, "to") and not isinstance(value, (Tensor, Mapping, type))


def copied(value: Any, device: torch.device | None = None) -> Any:
    """A copy, on a device: its tensors share no memory with these and no graph.

    Args:
        value: tensors, in containers if need be.
        device: None: where they are.

    Returns:
        The copy; what is neither a tensor nor a container nor can be moved is the same object.
    """
    if isinstance(value, Tensor):
        moved = value.detach() if device is None else value.detach().to(device, non_blocking=True)
        return moved.clone() if moved.data_ptr() == value.data_ptr() or moved.is_inference() else moved
    if is_object(value):
        made = copy.deepcopy(value)
        return made if device is None else made.to(device)
    return with_parts(lambda part: copied(part, device), value)


def cut(value: Any, count: int, places: Tensor) -> Any:
    """Some of ``count`` inputs: rows of tensors of that length, entries of lists of that length, wherever they stand.

    Args:
        value: tensors, in containers if need be.
        count: how many inputs there are.
        places: numbers of those that are wanted.

    Returns:
        The same, shortened; what has another length stays as it is.
    """
    if isinstance(value, Tensor):
        return value[places.to(value.device)] if value.dim() and len(value) == count else value
    if isinstance(value, list) and len(value) == count:
        return [value[place] for place in places.tolist()]
    return value if is_object(value) else with_parts(lambda part: cut(part, count, places), value)


def length(value: object) -> int | None:
    """How many inputs something holds: rows of its first tensor, or entries of a list; None where nothing says so."""
    if isinstance(value, Tensor):
        return len(value) if value.dim() else None
    if isinstance(value, list):
        return len(value)
    found = () if is_object(value) else (length(part) for part in parts_of(value) or ())
    return next((count for count in found if count is not None), None)


def divisible(value: object, count: int) -> bool:
    """Whether everything in it belongs to one of ``count`` inputs each, so that some of them can be taken."""
    if isinstance(value, Tensor):
        return not value.dim() or len(value) == count
    if isinstance(value, list) and len(value) == count:
        return True
    parts = None if is_object(value) else parts_of(value)
    if parts is None:
        return value is None or isinstance(value, (bool, int, float, str))
    return all(divisible(part, count) for part in parts)
