"""Layers that multiply by a pruned weight in other ways than dense: what `lobs.accelerate` chooses from.

Torch's compressed sparse rows (CSR) times columns, ``W [out, in] @ x.T [in, samples]``, take time in proportion to the
weights that are left. The transposes cost nothing where neighbours agree: x.T is a view, and a result that is handed on
as the view ``[samples, out]`` goes through a ReLU as it lies, so that the next layer's x.T is contiguous again.

All tensors are buffers: plain ones, since torch copies and stores none that are sparse. There are no gradients.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lobs.export.semi_structured import misfit
from lobs.layers.convolution import Windows
from lobs.layers.linear import TransposedLinearView
from lobs.layers.matrix import weight_matrix
from lobs.layers.view import Prunable

CSR, PIXELS, PATCHES = "csr", "csr on pixels", "csr on patches"
COLUMNS, SEMI_STRUCTURED = "dense without unread inputs", "2:4"
# Patches of a few images at a time: these stay in a core's cache.
PATCH_BYTES = 2**20
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SparseRows(nn.Module):
    """A layer's matrix as compressed sparse rows, and its bias as a column.

    Args:
        matrix: ``[out, features]``.
        bias: ``[out]``, or None.
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = tuple(matrix.shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            rows = matrix.to_sparse_csr()
        # Indices of 32 bits are MKL's own: others are converted in every call.
        self.register_buffer("crow_indices", rows.crow_indices().int())
        self.register_buffer("col_indices", rows.col_indices().int())
        self.register_buffer("values", rows.values())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._operands: tuple[Tensor, Tensor] | None = None
        self.eval()

    @property
    def weight(self) -> Tensor:
        """The matrix as torch's sparse tensor, which shares memory with the buffers."""
        return self.operands()[1]

    def operands(self) -> tuple[Tensor, Tensor]:
        """The bias as a column and the matrix, made once: to look them up takes as long as a small product."""
        if self._operands is None:
            parts = self.crow_indices, self.col_indices, self.values
            rows = torch.sparse_csr_tensor(*parts, self.shape, check_invariants=False)
            bias = self.values.new_zeros(self.shape[0]) if self.bias is None else self.bias
            self._operands = bias[:, None], rows
        return self._operands

    def extra_repr(self) -> str:
        """Shape and density."""
        out, features = self.shape
        return f"{out} x {features}, {len(self.values)} weights"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseRows:
        self._operands = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_operands": None}


class SparseLinear(SparseRows):
    """A Linear by compressed sparse rows.

    Attributes:
        contiguous: whether the output is laid out as a Linear's; else it is a transposed view, which spares two copies
            and which a ``view`` that joins axes refuses.
    """

    def __init__(self, module: Prunable) -> None:
        matrix = weight_matrix(module, bias=False)
        super().__init__(matrix, module.bias)
        self.out_features, self.in_features = matrix.shape
        self.contiguous = False

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        columns = (input if input.dim() == 2 else input.reshape(-1, self.in_features)).T
        output = torch.addmm(*self.operands(), columns).T
        if self.contiguous:
            output = output.contiguous()
        return output if input.dim() == 2 else output.reshape(*input.shape[:-1], self.out_features)


class ReadColumns(nn.Module):
    """A dense Linear of the inputs that any unit reads."""

    read: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(self, module: Prunable) -> None:
        super().__init__()
        matrix = weight_matrix(module, bias=False)
        self.register_buffer("read", (matrix != 0).any(dim=0).nonzero()[:, 0])
        self.register_buffer("weight", matrix[:, self.read].contiguous())
        self.register_buffer("bias", None if module.bias is None else module.bias.detach().clone())
        self.out_features, self.in_features = matrix.shape
        self.eval()

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return functional.linear(input.index_select(-1, self.read), self.weight, self.bias)


class SparseConvolution(SparseRows):
    """A convolution as the product of compressed sparse rows with its patches, a few images at a time.

    Groups lie in one matrix, each in its own columns.
    """

    def __init__(self, module: Any) -> None:
        matrix = weight_matrix(module, bias=False)
        super().__init__(torch.block_diag(*matrix.chunk(module.groups)), module.bias)
        self.options = {name: getattr(module, name) for name in ("kernel_size", "stride", "dilation", "groups")}
        self.padding, self.padding_mode = list(module._reversed_padding_repeated_twice), module.padding_mode

    def forward(self, input: Tensor) -> Tensor:
        """``[images, channels, ...]`` to ``[images, out, ...]``, with or without the first axis."""
        axes = len(self.options["kernel_size"])
        if input.dim() == axes + 1:
            return self.forward(input[None])[0]
        if any(self.padding):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = functional.pad(input, self.padding, mode=mode)
        windows = Windows(input, *self.options.values())
        sizes, (out, features) = windows.sizes, self.shape
        per_image = features * (windows.positions // max(1, len(input))) * input.element_size()
        output = input.new_empty(len(input), out, *sizes)
        step = max(1, PATCH_BYTES // max(1, per_image))
        for first in range(0, len(input), step):
            images = Windows(input[first : first + step], *self.options.values())
            columns = images.patches().flatten(1, 2).transpose(0, 1).reshape(features, -1)
            output[first : first + step] = (
                torch.addmm(*self.operands(), columns).reshape(out, -1, *sizes).transpose(0, 1)
            )
        return output


def alternatives(module: Prunable) -> dict[str, nn.Module]:
    """The ways to compute a pruned layer, by name; none for a class whose computation is not known.

    Args:
        module: a layer with a view as a matrix.

    Returns:
        A module for each, with copies of the layer's values.
    """
    if isinstance(module, _CONVOLUTIONS):
        if type(module).forward not in [kind.forward for kind in _CONVOLUTIONS]:
            return {}
        pointwise = set(module.kernel_size) == {1}
        return {PIXELS if pointwise else PATCHES: SparseConvolution(module)}
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    if not (plain or TransposedLinearView.fits(module)):
        return {}
    found: dict[str, nn.Module] = {CSR: SparseLinear(module)}
    if not (weight_matrix(module, bias=False) != 0).any(dim=0).all():
        found[COLUMNS] = ReadColumns(module)
    if module.weight.is_cuda and misfit(module) is None:
        semi_structured = copy.deepcopy(module).requires_grad_(False)
        weight = torch.sparse.to_sparse_semi_structured(module.weight.detach().contiguous())
        semi_structured.weight = nn.Parameter(weight, requires_grad=False)
        found[SEMI_STRUCTURED] = semi_structured
    return found
