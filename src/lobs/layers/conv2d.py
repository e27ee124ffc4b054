"""`nn.Conv2d` as a matrix: every output position is a sample, what the kernel sees there are its features."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from torch import Tensor, nn
from torch.nn import functional

from lobs.layers.view import View

# From so many output positions on an image's patches make a product of their own, and are left as they lie. Then a
# chunk's images do not belong together, and few of them come back in memory that is warm.
LONG = 1024
WARM_BYTES = 8 * 2**20
CHECKED_IMAGES = 2


class Conv2dView(View):
    """``features = in_channels / groups * kernel height * kernel width``, in the order of ``weight.flatten(1)``."""

    def samples(self, module: nn.Conv2d, inputs: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
        """Patches, unfolded a few images at a time; views of them where that spares a copy."""
        if inputs.dim() == 3:
            inputs = inputs[None]
        positions = prod(_output_size(module, inputs))
        per_image = prod(module.weight.shape[1:]) * module.groups * positions
        # Groups' products are many and small: a copy costs more than they.
        alone = positions >= LONG or module.groups > 1
        most = min(chunk_bytes, WARM_BYTES) if alone else chunk_bytes
        images = max(1, most // max(1, per_image * inputs.element_size()))
        for chunk in inputs.split(images):
            patches = _patches(module, chunk).unflatten(1, (module.groups, -1))
            if alone:
                yield from (image.mT for image in patches)
            else:
                # [images, groups, features, positions] -> [groups, images * positions, features]
                yield patches.permute(1, 0, 3, 2).flatten(1, 2)

    def unit_axis(self, outputs: Tensor) -> int:
        """The channel axis."""
        return -3

    def part(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first images."""
        return (inputs, outputs) if inputs.dim() == 3 else (inputs[:CHECKED_IMAGES], outputs[:CHECKED_IMAGES])


def _patches(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What a convolution's kernel sees at every position, ``[images, groups * features, positions]``."""
    padding = module._reversed_padding_repeated_twice
    if any(padding):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = functional.pad(inputs, padding, mode=mode)
    if prod(module.kernel_size) == 1:  # nothing to unfold
        return inputs[:, :, :: module.stride[0], :: module.stride[1]].flatten(2)
    # Windows as long as the output, one per place in the kernel: copied along the rows, about twice as fast as unfold.
    views = inputs
    sizes = zip(
        _output_size(module, inputs, padded=True), module.kernel_size, module.stride, module.dilation, strict=True
    )
    for axis, (size, kernel, stride, dilation) in enumerate(sizes, start=2):
        views = views.unfold(axis, (size - 1) * stride + 1, dilation).narrow(axis, 0, kernel)[..., ::stride]
    return views.reshape(len(inputs), -1, views.shape[-2] * views.shape[-1])


def _output_size(module: nn.Conv2d, inputs: Tensor, padded: bool = False) -> tuple[int, int]:
    left, right, top, bottom = [0] * 4 if padded else module._reversed_padding_repeated_twice
    size = []
    for axis, extra in ((0, top + bottom), (1, left + right)):
        span = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        size.append((inputs.shape[axis - 2] + extra - span) // module.stride[axis] + 1)
    return size[0], size[1]
