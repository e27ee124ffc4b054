"""Checks of arguments' types; the message names the argument, what was given and what is accepted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real


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
