"""Running sums over a layer's samples: what statistics and sequential pruning stream their inputs into.

Products are formed in the inputs' precision over chunks of at most `CHUNK_SAMPLES` samples and summed in float64,
so that float32 inputs lose nothing that matters, and memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.backends import cudnn
from torch.nn import grad

from lobs.base.distributed import gathered, summed
from lobs.calibration.products import CHUNK_SAMPLES, row_blocks, symmetrise
from lobs.calibration.shifted_products import ShiftedSums, shifts_pay
from lobs.layers.convolution import ConvolutionView, Windows
from lobs.layers.matrix import input_samples, matrix_shape, unit_outputs, view_of
from lobs.layers.view import Prunable

# Inputs that are unfolded along some axes only come in chunks of about so many bytes.
SHIFTED_BYTES = 32 * 2**20
# And of so many output positions at most: what is summed in the inputs' precision at once.
SHIFTED_POSITIONS = 2**17
# Samples by which the precision of products is chosen, and how many times their spread their square may be in float32,
# whose products of such inputs leave an error of about a thousandth of the spread.
LOOKED_AT = 1024
FAR = 1e4
GRADIENTS = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}


class Reservoir:
    """A uniform sample of rows from a stream.

    Two reservoirs of the same size that are fed the same numbers of rows keep the same rows.

    Args:
        keep: how many rows to keep; 0 keeps none.
        seed: of the draws; reservoirs whose rows are to be combined need different ones.
    """

    def __init__(self, keep: int, seed: int = 0) -> None:
        self.keep = keep
        self.generator = torch.Generator().manual_seed(seed)
        self.keys: Tensor = torch.empty(0)
        self.kept: Tensor = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Add rows ``[groups, n, features]``: every row draws a key, the largest keys stay."""
        if not self.keep:
            return
        keys = torch.rand(rows.shape[1], generator=self.generator)
        fresh = keys.argsort(descending=True)[: self.keep]
        keys = torch.cat([self.keys, keys[fresh]])
        rows = rows[:, fresh.to(rows.device)]
        rows = torch.cat([self.kept.to(rows), rows], 1) if len(self.keys) else rows
        chosen = keys.argsort(descending=True)[: self.keep]
        self.keys, self.kept = keys[chosen], rows[:, chosen.to(rows.device)]

    def combine(self) -> None:
        """Keep the largest keys of all processes: a uniform sample of all rows, the same in every process."""
        if not self.keep:
            return
        parts = gathered((self.keys, self.kept.cpu()))
        keys = torch.cat([part[0] for part in parts])
        chosen = keys.argsort(descending=True)[: self.keep]
        rows = torch.cat([part[1] for part in parts], 1)[:, chosen]
        self.keys, self.kept = keys[chosen], rows.to(self.kept.device)

    def rows(self) -> Tensor | None:
        """The rows kept ``[k, features]`` (``[groups, k, features]`` for several groups), None where none are."""
        if not self.keep:
            return None
        return self.kept[0] if len(self.kept) == 1 else self.kept


class InputSums:
    """Sums of one layer's input products and zero counts, and a uniform sample of its inputs.

    Args:
        bias: whether the layer has one: its ones become the last input.
        keep: size of the sample.
        seed: of the sample.
    """

    def __init__(self, bias: bool, keep: int = 0, seed: int = 0) -> None:
        self.bias = bias
        self.reservoir = Reservoir(keep, seed)
        self.samples = 0
        self.inputs = 0
        self.outputs = 0
        self.moment: Tensor = torch.empty(0)
        self.shifted: ShiftedSums | None = None
        self.zeros: Tensor | None = None
        # Whether products are formed in float64; None: no inputs have told yet, some of which are these.
        self.double: bool | None = None
        self.seen: Tensor = torch.empty(0)

    def add(self, samples: Tensor) -> None:
        """Add samples ``[groups, n, features]``."""
        groups, count, features = samples.shape
        samples = widened(samples)
        if not len(self.moment):
            self._begin(samples, groups, features)
        double = self._needs_double(samples)
        for part in samples.split(CHUNK_SAMPLES, dim=1):
            chunk = part.double() if double else part
            for rows in row_blocks(features):
                self.moment[:, rows, : rows.stop] += chunk[:, :, rows].mT @ chunk[:, :, : rows.stop]
            if self.bias:
                self.moment[:, -1, :features] += chunk.sum(dim=1, dtype=torch.float64)
        self.reservoir.add(samples)
        self.samples += count

    def add_call(self, module: Prunable, inputs: Tensor) -> None:
        """Add what a layer was given in a call; without unfolding it, where that is faster and no rows are kept."""
        shifted = None if self.reservoir.keep else _shifted(module, inputs)
        if shifted is None:
            for samples in input_samples(module, inputs):
                self.add(samples)
            return
        double = self._needs_double(_pixels(inputs))
        for _, windows in shifted:
            windows = replace(windows, inputs=windows.inputs.double()) if double else windows
            if self.shifted is None:
                self.shifted = ShiftedSums(windows)
            self.shifted.add(windows)
            self.samples += windows.positions

    def _needs_double(self, samples: Tensor) -> bool:
        """Whether float32's products lose what they are for: tested on the first samples, not all of them the same.

        Their squares may underflow, or their mean be so far from zero that rounding covers their spread.

        Args:
            samples: ``[groups, n, features]``.

        Returns:
            True as long as nothing is known.
        """
        if self.double is None:
            few = samples[:, :: 1 + samples.shape[1] // LOOKED_AT].double()
            if not few.any():
                return False  # zeros lose nothing
            known = self.seen.dim() == 3 and self.seen.shape[2] == few.shape[2]
            self.seen = torch.cat([self.seen, few], 1) if known else few
            spread, mean = torch.var_mean(self.seen, dim=1, correction=0)
            square, limits = mean.square().sum() + spread.sum(), torch.finfo(widened(samples[:, :0]).dtype)
            if spread.any() or self.seen.shape[1] >= LOOKED_AT:
                small = square < mean.numel() * limits.tiny / limits.eps
                self.double = bool(small | (spread.any() & (square > FAR * spread.sum())))
                self.seen = torch.empty(0)
        return self.double is not False

    def add_zeros(self, zeros: Tensor, outputs: int) -> None:
        """Add to the counts of outputs that a ReLU sets to zero, ``[out]``, of so many of each unit."""
        self.zeros = zeros if self.zeros is None else self.zeros + zeros
        self.outputs += outputs

    def whole(self) -> Tensor:
        """The sums of products, of all that was added: float64 ``[groups, d, d]``, its lower triangle."""
        if self.shifted is not None:
            features = self.shifted.total.numel()
            if not len(self.moment):
                self._begin(self.shifted.total, 1, features)
            total = self.moment[0, -1, :features] if self.bias else None
            self.shifted.add_to(self.moment[0, :features, :features], total)
            self.shifted = None
        return self.moment

    def _begin(self, like: Tensor, groups: int, features: int) -> None:
        size = features + self.bias
        self.moment = like.new_zeros(groups, size, size, dtype=torch.float64)

    def combine(self) -> None:
        """Add up the sums of all processes: every process then holds those of all their batches."""
        self.moment = summed(self.whole())
        self.zeros = None if self.zeros is None else summed(self.zeros)
        counts = torch.tensor([self.samples, self.inputs, self.outputs])
        self.samples, self.inputs, self.outputs = summed(counts).tolist()
        self.reservoir.combine()

    def sample(self) -> Tensor | None:
        """The kept inputs, with the bias's ones; None where none were asked for."""
        kept = self.reservoir.rows()
        if kept is None or not self.bias:
            return kept
        return torch.cat([kept, kept.new_ones(*kept.shape[:-1], 1)], -1)

    def second_moment(self, name: str) -> Tensor:
        """The mean product; the sum is used up.

        Args:
            name: of the layer, for the message.

        Returns:
            float64 ``[groups, d, d]``.

        Raises:
            ValueError: an input was not finite.
        """
        moment = self.whole()
        if self.bias:
            moment[:, :-1, -1] = moment[:, -1, :-1]
            moment[:, -1, -1] = self.samples
        moment /= self.samples
        # An input that is not finite shows in its own square, and no mask of a wide layer's whole moment is needed.
        squares = moment.diagonal(dim1=-2, dim2=-1)
        if squares.isnan().any():
            # An infinite value times a zero is NaN, too.
            raise ValueError(f"layer {name!r}: its calibration inputs hold NaN or infinite values: give finite ones")
        if squares.isinf().any():
            raise ValueError(
                f"layer {name!r}: its calibration inputs hold infinite values, or some so large that the sum of their "
                f"squares overflows (float32 holds 3.4e38): give finite ones of a usual scale"
            )
        symmetrise(moment, lower_only=len(row_blocks(moment.shape[-1] - self.bias)) > 1)
        return moment


class ResidualSums:
    """Sums over pairs of an input x and the residual ``r = z - W x`` that weights W leave to a target z.

    The residual, because it is small where little has been pruned: its products keep the digits that those of z lose.

    Args:
        bias: whether the layer has one.
        keep: size of the sample of targets.
    """

    def __init__(self, bias: bool, keep: int = 0) -> None:
        self.bias = bias
        self.reservoir = Reservoir(keep)
        self.moment: Tensor = torch.empty(0)
        self.power = 0.0
        self.samples = 0

    def add(self, samples: Tensor, residuals: Tensor, targets: Tensor) -> None:
        """Add samples ``[groups, n, features]`` with their residuals and targets, both ``[n, out]``."""
        groups, count, features = samples.shape
        samples, targets = widened(samples), widened(targets)
        residuals = widened(residuals).unflatten(1, (groups, -1)).movedim(1, 0)
        if not self.samples:
            size = features + self.bias
            self.moment = samples.new_zeros(groups, residuals.shape[2], size, dtype=torch.float64)
        for rows, rest in zip(samples.split(CHUNK_SAMPLES, 1), residuals.split(CHUNK_SAMPLES, 1), strict=True):
            self.moment[:, :, :features] += rest.mT @ rows
            if self.bias:
                self.moment[:, :, -1] += rest.sum(dim=1, dtype=torch.float64)
        self.power += float(residuals.double().square().sum())
        self.reservoir.add(targets[None])
        self.samples += count

    def add_call(self, module: Prunable, inputs: Tensor, residual: Tensor, target: Tensor) -> None:
        """Add what a layer was given in a call, with residual and target in the shape of its output.

        Where `InputSums` does not unfold the inputs, the sum is a convolution's gradient in its weight.
        """
        shifted = None if self.reservoir.keep else _shifted(module, inputs)
        if shifted is None:
            rest, targets, start = unit_outputs(module, residual), unit_outputs(module, target), 0
            for samples in input_samples(module, inputs):
                stop = start + samples.shape[1]
                self.add(samples, rest[start:stop], targets[start:stop])
                start = stop
            return
        out, features = matrix_shape(module)
        for images, windows in shifted:
            if not self.samples:
                self.moment = windows.inputs.new_zeros(1, out, features + self.bias, dtype=torch.float64)
            rest = widened(residual[images])
            shape = (out, windows.inputs.shape[1], *windows.kernel)
            # cuDNN would round to TensorFloat-32, and add in another order every time.
            with cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                gradient = GRADIENTS[len(windows.kernel)](
                    windows.inputs, shape, rest, windows.stride, 0, windows.dilation, windows.groups
                )
            self.moment[0, :, :features] += gradient.flatten(1)
            if self.bias:
                self.moment[0, :, -1] += rest.transpose(0, 1).flatten(1).sum(1, dtype=torch.float64)
            self.power += float(rest.double().square().sum())
            self.samples += windows.positions

    def target(self, weight: Tensor, second_moment: Tensor) -> tuple[Tensor, float]:
        """E[z x^T] and E||z||^2 from the residuals' sums.

        Args:
            weight: W, ``[out, d]``.
            second_moment: Psi = E[x x^T], ``[groups, d, d]``.

        Returns:
            target_moment: float64 ``[out, d]``.
            target_power: E||z||^2, not negative.
        """
        rows = weight.double().unflatten(0, (len(self.moment), -1))
        residual = self.moment / self.samples
        produced = rows @ second_moment
        power = self.power / self.samples + float((rows * (2 * residual + produced)).sum())
        return (residual + produced).flatten(0, 1), max(power, 0.0)


def _shifted(module: Prunable, inputs: Tensor) -> Iterator[tuple[slice, Windows]] | None:
    """A convolution's inputs, some images at a time, where it need not be unfolded whole; else None."""
    view = view_of(module)
    if not isinstance(view, ConvolutionView) or inputs.dim() != view.axes + 2:
        return None
    first = view.windows(module, inputs[:1])
    if not first.positions or not shifts_pay(first):
        return None
    bytes_each = max(1, inputs[:1].numel() * inputs.element_size())
    images = max(1, min(SHIFTED_BYTES // bytes_each, SHIFTED_POSITIONS // first.positions))
    places = (slice(start, start + images) for start in range(0, len(inputs), images))
    return ((place, view.windows(module, widened(inputs[place]))) for place in places)


def _pixels(images: Tensor) -> Tensor:
    """About `LOOKED_AT` pixels of images ``[n, channels, ...]`` as samples ``[1, pixels, channels]``."""
    few = images[:: 1 + len(images) // 8].flatten(2)
    return few[..., :: 1 + 8 * few.shape[2] // LOOKED_AT].movedim(1, 2).flatten(0, 1)[None]


def combined(sums: dict[str, InputSums]) -> dict[str, InputSums]:
    """Add the sums of all processes up, layer by layer.

    Args:
        sums: of this process, by layer name; they are changed.

    Returns:
        The same, in the order of the first process.

    Raises:
        ValueError: the processes did not call the same layers.
    """
    called = gathered(list(sums))
    for rank, names in enumerate(called):
        if set(names) != set(called[0]):
            raise ValueError(
                f"process {rank} called the layers {', '.join(names)}, process 0 {', '.join(called[0])}: statistics "
                f"can only be summed over the same layers"
            )
    for name in called[0]:
        sums[name].combine()
    return {name: sums[name] for name in called[0]}


def widened(values: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
