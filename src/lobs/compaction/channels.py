"""Which channels of a network are constant, which are read, and which have to leave together.

Every tensor of two or four dimensions has one *id* per position of its dimension 1: a Linear or an ungrouped Conv2d
makes new ids, whatever works channel by channel passes them on, flattening repeats each of them, and ids that have to
leave together (the two sides of a sum, the ends of a grouped convolution) are tied. Beside the ids goes what is known
about constants: a channel is known where it has the same value at every position of every input.
`lobs.compaction.trace` finds all of this; here is what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lobs.layers.view import Prunable


@dataclass
class Axis:
    """Dimension 1 of a tensor: an id, whether its value is known, and the value (float64), per position."""

    ids: Tensor
    known: Tensor
    value: Tensor

    def where(self, exact: bool | Tensor) -> Axis:
        """The same channels, known only where ``exact``."""
        return Axis(self.ids, self.known & exact, self.value)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Axis:
        """The same channels after a function that works element by element."""
        value = change(self.value.clone()).double()
        return Axis(self.ids, self.known & value.isfinite(), value)


@dataclass
class LinearOperation:
    """A Linear or Conv2d: which inputs each unit reads, and which of them are constants that its bias can take over.

    Attributes:
        name: of the module.
        module: it.
        inputs: channels read.
        outputs: ids made; with groups, of the inputs' ties.
        reads: ``[out, in]``, only without groups.
        foldable: ``[in]``.
    """

    name: str
    module: Prunable
    inputs: Axis
    outputs: Tensor
    reads: Tensor | None
    foldable: Tensor


@dataclass
class Channels:
    """A network's channels.

    Attributes:
        products: Linear and Conv2d modules in the order of their calls.
        norms: batch norms, each with its name and ids.
    """

    products: list[LinearOperation] = field(default_factory=list)
    norms: list[tuple[str, nn.Module, Tensor]] = field(default_factory=list)
    _parent: list[int] = field(default_factory=list)
    _pinned: list[int] = field(default_factory=list)

    def new(self, count: int) -> Tensor:
        """Fresh ids."""
        start = len(self._parent)
        self._parent += range(start, start + count)
        return torch.arange(start, start + count)

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Let ids leave together only, pair by pair."""
        for first, second in zip(one.tolist(), other.tolist(), strict=True):
            self._parent[self._root(first)] = self._root(second)

    def pin(self, ids: Tensor) -> None:
        """Let ids stay."""
        self._pinned += ids.unique().tolist()

    def _root(self, entry: int) -> int:
        while self._parent[entry] != entry:
            self._parent[entry] = self._parent[self._parent[entry]]
            entry = self._parent[entry]
        return entry

    def needed(self) -> Tensor:
        """Which ids have to stay: the least set that holds the pinned ones and what its own units read.

        A unit reads an input through a weight that is not zero, unless the input is a constant that goes into the
        bias. Every layer keeps one unit, as no layer can be empty.

        Returns:
            bool by id.
        """
        roots = torch.tensor([self._root(entry) for entry in range(len(self._parent))], dtype=torch.long)
        need = torch.zeros(len(roots), dtype=torch.bool)
        need[roots[torch.tensor(self._pinned, dtype=torch.long)]] = True
        while True:
            before = int(need.sum())
            for product in reversed(self.products):
                if product.reads is not None:
                    read = product.reads[need[roots[product.outputs]]].any(dim=0) & ~product.foldable
                    need[roots[product.inputs.ids[read]]] = True
            if int(need.sum()) > before:
                continue
            empty = [product for product in self.products if not need[roots[product.outputs]].any()]
            if not empty:
                return need[roots]
            need[roots[empty[-1].outputs[0]]] = True


def constants(module: Prunable, value: Tensor) -> Tensor:
    """What a layer makes of inputs that are constant everywhere (no padding in sight), float64 on the CPU.

    Args:
        module: the layer.
        value: ``[in]``, float64; zero where an input is not to be counted.

    Returns:
        ``[out]``: the bias plus, over the inputs, the sum of the kernel times the value.
    """
    groups = getattr(module, "groups", 1)
    weight = module.weight.detach().unflatten(0, (groups, -1))
    value = value.view(groups, -1)
    used = value.ne(0).any(dim=0).nonzero()[:, 0]
    kernels = weight[:, :, used.to(weight.device)].cpu().double().flatten(3).sum(dim=3) if weight.dim() > 3 else None
    if kernels is None:
        kernels = weight[:, :, used.to(weight.device)].cpu().double()
    result = torch.einsum("goi,gi->go", kernels, value[:, used]).flatten()
    return result if module.bias is None else result + module.bias.detach().cpu().double()
