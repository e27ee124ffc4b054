"""Convolutions as matrices: every output position is a sample, what the kernel sees there are its features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lobs.layers.view import View

# From so many output positions on an image's patches make a product of their own, and are left as they lie. Then a
# chunk's images do not belong together, and few of them come back in memory that is warm.
LONG = 1024
WARM_BYTES = 8 * 2**20
CHECKED_IMAGES = 1
FUNCTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


@dataclass(frozen=True)
class Windows:
    """What a kernel slides over.

    Attributes:
        inputs: ``[images, channels, ...]``, padded.
        kernel: its size along every axis.
        stride: between its places.
        dilation: between its entries.
        groups: of channels.
    """

    inputs: Tensor
    kernel: Sequence[int]
    stride: Sequence[int]
    dilation: Sequence[int]
    groups: int

    @property
    def sizes(self) -> list[int]:
        """Places along every axis."""
        spans = [dilation * (kernel - 1) + 1 for kernel, dilation in zip(self.kernel, self.dilation, strict=True)]
        return [
            (size - span) // stride + 1
            for size, span, stride in zip(self.inputs.shape[2:], spans, self.stride, strict=True)
        ]

    @property
    def positions(self) -> int:
        """Places in all images."""
        return len(self.inputs) * prod(self.sizes)

    def patches(self) -> Tensor:
        """What the kernel sees at every place, ``[images, groups, features, places]``."""
        views = self.inputs
        if prod(self.kernel) == 1:  # nothing to unfold
            views = views[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))].flatten(2)
        else:
            # Windows as long as the output, one per place in the kernel: copied along the rows, about twice as fast as
            # unfold.
            steps = zip(self.sizes, self.kernel, self.stride, self.dilation, strict=True)
            for axis, (size, kernel, stride, dilation) in enumerate(steps, start=2):
                views = views.unfold(axis, (size - 1) * stride + 1, dilation).narrow(axis, 0, kernel)[..., ::stride]
            views = views.reshape(len(views), -1, prod(self.sizes))
        return views.unflatten(1, (self.groups, -1))

    def samples(self) -> Iterator[Tensor]:
        """The patches as ``[groups, samples, features]``."""
        patches = self.patches()
        if alone(patches.shape[1], patches.shape[3]):
            yield from (image.mT for image in patches)
        else:
            # [images, groups, features, positions] -> [groups, images * positions, features]
            yield patches.permute(1, 0, 3, 2).flatten(1, 2)


def alone(groups: int, positions: int) -> bool:
    """Whether every image's patches make a product of their own."""
    return positions >= LONG or groups > 1  # groups' products are many and small: a copy costs more than they


class ConvolutionView(View):
    """``features = in_channels / groups * kernel places``, in the order of ``weight.flatten(1)``.

    A class with a forward of its own (timm's ``Conv2dSame``) is seen by what it gives to torch's convolution.

    Args:
        axes: 1, 2 or 3.
    """

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def groups(self, module: Any) -> int:
        """Its own."""
        return module.groups

    def overlap(self, module: Any) -> int:
        """Places of the kernel that can cover one element."""
        return prod(
            kernel if dilation > 1 else ceil(kernel / stride)
            for kernel, stride, dilation in zip(module.kernel_size, module.stride, module.dilation, strict=True)
        )

    def windows(self, module: Any, inputs: Tensor) -> Windows:
        """What the kernel slides over in a call.

        Args:
            module: the layer.
            inputs: of the call, ``[images, channels, ...]``.

        Returns:
            The padded inputs.
        """
        if type(module).forward is not _CLASSES[self.axes].forward and (found := _own_call(module, inputs)):
            return found
        padding = module._reversed_padding_repeated_twice
        if any(padding):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            inputs = functional.pad(inputs, padding, mode=mode)
        return Windows(inputs, module.kernel_size, module.stride, module.dilation, module.groups)

    def samples(self, module: Any, inputs: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
        """Patches, unfolded a few images at a time; views of them where that spares a copy."""
        for windows in self.chunks(module, inputs, chunk_bytes):
            yield from windows.samples()

    def chunks(self, module: Any, inputs: Tensor, chunk_bytes: int) -> Iterator[Windows]:
        """The windows of a few images at a time, whose patches would take no more than about so many bytes."""
        if inputs.dim() == self.axes + 1:
            inputs = inputs[None]
        groups, positions = self.groups(module), prod(self.windows(module, inputs[:1]).sizes)
        if not positions:
            return
        per_image = prod(module.kernel_size) * inputs.shape[1] * positions
        most = min(chunk_bytes, WARM_BYTES) if alone(groups, positions) else chunk_bytes
        for chunk in inputs.split(max(1, most // max(1, per_image * inputs.element_size()))):
            yield self.windows(module, chunk)

    def unit_axis(self, outputs: Tensor) -> int:
        """The channel axis."""
        return -1 - self.axes

    def part(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first images."""
        whole = inputs.dim() == self.axes + 1
        return (inputs, outputs) if whole else (inputs[:CHECKED_IMAGES], outputs[:CHECKED_IMAGES])


class TransposedConvolutionView(ConvolutionView):
    """A transposed convolution: an ordinary one of the inputs spread out with zeros, with the kernel turned around.

    The weight is ``[in_channels, out_channels / groups, ...]``; the matrix's rows are output channels, its features
    ``in_channels / groups * kernel places``.
    """

    def matrix(self, module: Any, values: Tensor) -> Tensor:
        """Channels exchanged within their groups, the kernel's places backwards."""
        places = list(range(3, 3 + self.axes))
        return values.unflatten(0, (module.groups, -1)).transpose(1, 2).flip(places).flatten(0, 1).flatten(1)

    def shaped(self, module: Any, matrix: Tensor) -> Tensor:
        """Backwards and exchanged again."""
        groups, channels = module.groups, module.in_channels // module.groups
        values = matrix.reshape(groups, -1, channels, *module.kernel_size)
        return values.flip(list(range(3, 3 + self.axes))).transpose(1, 2).flatten(0, 1)

    def overlap(self, module: Any) -> int:
        """Every place of the kernel."""
        return prod(module.kernel_size)

    def windows(self, module: Any, inputs: Tensor) -> Windows:
        """The inputs spread out, and room around them for the kernel's ends."""
        spread = inputs.new_zeros(
            *inputs.shape[:2],
            *((size - 1) * stride + 1 for size, stride in zip(inputs.shape[2:], module.stride, strict=True)),
        )
        spread[(slice(None), slice(None), *(slice(None, None, stride) for stride in module.stride))] = inputs
        room = []  # before and after, from the last axis on, as pad takes it
        sizes = zip(module.kernel_size, module.dilation, module.padding, module.output_padding, strict=True)
        for kernel, dilation, padding, extra in reversed(list(sizes)):
            before = dilation * (kernel - 1) - padding
            room += [before, before + extra]
        ones = [1] * self.axes
        return Windows(functional.pad(spread, room), module.kernel_size, ones, module.dilation, module.groups)


_CLASSES: Mapping[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class _Recorder(TorchFunctionMode):
    """Notes the arguments of the first convolution with a given weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.found: list[Any] | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in FUNCTIONS and self.found is None:
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            if given["weight"] is self.weight:
                options = zip(names[3:], (1, 0, 1, 1), strict=True)
                self.found = [given["input"], *(given.get(name, default) for name, default in options)]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _own_call(module: Any, inputs: Tensor) -> Windows | None:
    """What a forward of its own gives to torch's convolution; None where it does not compute with the weight so."""
    with _Recorder(module.weight) as recorder, suppress(TypeError):  # of a forward that takes more than inputs
        type(module).forward(module, inputs)
    if recorder.found is None:
        return None
    given, stride, padding, dilation, groups = recorder.found
    kernel = module.weight.shape[2:]
    stride, dilation = (_each(value, len(kernel)) for value in (stride, dilation))
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(side, side) for side in _each(0 if padding == "valid" else padding, len(kernel))]
    given = functional.pad(given, [side for pair in reversed(sides) for side in pair])
    return Windows(given, kernel, stride, dilation, cast("int", groups))


def _each(value: int | Sequence[int], axes: int) -> Sequence[int]:
    return [value] * axes if isinstance(value, int) else list(value) * (axes if len(value) == 1 else 1)
