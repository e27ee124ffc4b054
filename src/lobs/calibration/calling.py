"""Batches that know how a network is called with them and what of its outputs is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import CodeType

import torch
from torch import Tensor

from lobs.base.fingerprint import digest
from lobs.base.network_inputs import Call, Inputs, Output, shown
from lobs.base.trees import cut, is_object, leaves, length

ACCEPTED = (
    "a batch must be a tensor, a mapping of inputs by name, or a tuple or list that starts with its inputs (a tensor, "
    "several in a tuple or list, or a mapping)"
)
OTHERWISE = "give call=lambda model, batch: ... for anything else"


@dataclass(frozen=True)
class Calling:
    """How a network is run on a batch.

    Attributes:
        call: a function of the network and the batch, in place of calling it with the batch's inputs.
        output: what of the outputs is looked at.
        takes_list: whether a list of inputs is one argument, else it is several.
        whole: whether a batch's inputs belong together (`lobs.calibration.inputs.inputs_depend`).

    Raises:
        TypeError: ``call`` is no function, or ``output`` neither a function nor a name nor an index.
    """

    call: Call | None = None
    output: Output | None = None
    takes_list: bool = True
    whole: bool = False

    def __post_init__(self) -> None:
        if not (self.call is None or callable(self.call)):
            raise TypeError(f"call must be a function of the network and a batch, got {self.call!r}")
        named = isinstance(self.output, (str, int)) and not isinstance(self.output, bool)
        if not (self.output is None or named or callable(self.output)):
            raise TypeError(
                f"output must be a function of the outputs, a key or attribute, or an index, got {self.output!r}"
            )


@dataclass(frozen=True)
class CalledBatch:
    """A batch and how a network is run on it."""

    content: object
    calling: Calling

    def inputs(self) -> Inputs:
        """What the batch gives a network, as it lies there.

        Returns:
            The inputs.

        Raises:
            TypeError: the batch or a tensor in it is of another kind, or nothing says how many inputs it holds.
        """
        content, calling = self.content, self.calling
        for leaf in leaves(content):
            if isinstance(leaf, Tensor) and (kind := _unusual(leaf)):
                raise TypeError(f"a batch holds a {kind}: give plain tensors with values (to_dense(), dequantize())")
        first = (
            content[0] if isinstance(content, (tuple, list)) and len(content) and not is_object(content) else content
        )
        count = length(first)
        if calling.call is not None:
            # Nobody knows what in it belongs to which input; what holds no tensors at all counts as one input.
            rows = (len(leaf) for leaf in leaves(content) if isinstance(leaf, Tensor) and leaf.dim())
            return Inputs((content,), {}, next(rows, 1) if count is None else count, calling.call, calling.output)
        if isinstance(first, Tensor) and not first.dim():
            raise TypeError("a batch must hold inputs along its first axis; got a tensor without any axis")
        several = not isinstance(first, Tensor) and first is content and not isinstance(first, Mapping)
        if is_object(first) or several or not isinstance(first, (Tensor, tuple, list, Mapping)):
            raise TypeError(f"{ACCEPTED}; got {shown(content)}: {OTHERWISE}")
        args: tuple = ()
        kwargs: dict = {}
        if isinstance(first, Mapping):
            kwargs = dict(first)
        elif isinstance(first, tuple) or (isinstance(first, list) and not calling.takes_list):
            args, count = tuple(first), length(tuple(first))
        else:
            args = (first,)
        if count is None:
            raise TypeError(f"nothing in a batch of {shown(content)} says how many inputs it holds: {OTHERWISE}")
        return Inputs(args, kwargs, count, None, calling.output, calling.whole)

    def target(self) -> object:
        """What stands second in it, or under ``labels`` in a mapping; None where it has none."""
        if isinstance(self.content, Mapping):
            return self.content.get("labels")
        return self.content[1] if isinstance(self.content, (tuple, list)) and len(self.content) > 1 else None

    def cut(self, count: int, places: Tensor) -> CalledBatch:
        """Some of its inputs, with what belongs to them."""
        if not isinstance(self.content, (tuple, list)):
            return CalledBatch(cut(self.content, count, places), self.calling)
        first, *rest = self.content
        if isinstance(first, list) and not self.calling.takes_list:
            first = tuple(first)  # several inputs, whatever their number
        kind = tuple if isinstance(self.content, tuple) else list
        return CalledBatch(kind(cut(entry, count, places) for entry in (first, *rest)), self.calling)

    def digest(self) -> str:
        """A digest of everything that it holds and of how it is called."""
        found = (leaf for leaf in leaves(self.content))
        plain = (Tensor, str, bytes, int, float, complex, type(None))
        parts = [leaf if isinstance(leaf, plain) else _stable(leaf) for leaf in found]
        return digest([*parts, code_text(self.calling.call), code_text(self.calling.output)])


def called(batch: object, calling: Calling = Calling()) -> CalledBatch:
    """A batch that knows how a network is run on it; one that knows it already stays as it is."""
    return batch if isinstance(batch, CalledBatch) else CalledBatch(batch, calling)


def _unusual(tensor: Tensor) -> str | None:
    """What a tensor is that can be neither copied nor cut like others; None for plain ones."""
    if tensor.is_meta:
        return "tensor on the meta device, which has no values"
    if tensor.is_nested or tensor.is_quantized:
        return "nested tensor" if tensor.is_nested else f"quantized tensor ({tensor.dtype})"
    return None if tensor.layout == torch.strided else f"sparse tensor ({tensor.layout})"


def _stable(leaf: object) -> object:
    """What stays the same between two readings: an array's numbers, of other objects the class."""
    try:
        return torch.as_tensor(leaf)
    except (TypeError, ValueError, RuntimeError):
        return f"{type(leaf).__module__}.{type(leaf).__qualname__}"


def code_text(function: object) -> str:
    """A function's name and what it does, for digests; names and indices as they are."""
    if function is None or isinstance(function, (str, int)):
        return repr(function)
    if isinstance(function, partial):
        return f"{code_text(function.func)}{function.args}{function.keywords}"
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name} {_code_text(code) if isinstance(code, CodeType) else ''}"


def _code_text(code: CodeType) -> str:
    constants = [
        # The order of a set's entries is another one in every process.
        sorted(map(repr, each))
        if isinstance(each, frozenset)
        else _code_text(each)
        if isinstance(each, CodeType)
        else each
        for each in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
