"""Which channels of a network are constant, which are read, and which have to leave together.

Every unit of a Linear or a convolution has an *id*, and every tensor that is followed says which id stands at which of
its places: a product makes new ids, whatever works element by element passes them on, a step that moves values about
moves the ids with them, and ids that have to leave together (the two sides of a sum, a group, a head) are tied. Beside
the ids goes what is known about constants: a channel is known where it has the same value at every position of every
input. `lobs.compaction.trace` finds all of this; here is what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lobs.layers.view import Prunable


@dataclass
class Axis:
    """Which id stands where in a tensor, whether its value is known, and the value (float64).

    All three have the tensor's number of dimensions, and size 1 in every dimension along which they are the same: maps
    ``[batch, C, height, width]`` have ids ``[1, C, 1, 1]``, tokens ``[batch, tokens, C]`` have ``[1, 1, C]``.
    """

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

    def each(self, change: Callable[[Tensor], Tensor]) -> Axis:
        """The axis after a change of its three tensors."""
        return Axis(change(self.ids), change(self.known), change(self.value))

    def line(self, dim: int, width: int) -> Axis | None:
        """The channels along one dimension, as vectors of its width; None where they differ along another, too."""
        if self.ids.numel() != self.ids.shape[dim]:
            return None
        return self.each(lambda entry: entry.flatten().expand(width))

    def placed(self, dim: int, rank: int) -> Axis:
        """The inverse of `line`."""
        shape = [1] * rank
        shape[dim] = -1
        return self.each(lambda entry: entry.reshape(shape))


@dataclass
class LinearOperation:
    """A Linear or a convolution: which inputs each unit reads, and which are constants that its bias can take over.

    Attributes:
        name: of the module.
        module: it.
        inputs: channels read, as vectors.
        outputs: ids made; with groups, of the inputs' ties.
        reads: ``[out, in]``, only without groups.
        foldable: ``[in]``.
        constant: ``[out]``, units that are constants; None: not known.
    """

    name: str
    module: Prunable
    inputs: Axis
    outputs: Tensor
    reads: Tensor | None
    foldable: Tensor
    constant: Tensor | None = None


@dataclass
class Follower:
    """A module whose tensors lose the channels that leave: batch norm, group norm, a scale per channel, heads.

    Attributes:
        module: it.
        ids: one per channel.
        tensors: names of its parameters and buffers, each with the dimension that lies along the channels.
        sizes: names of its attributes that count the channels, each with how many channels make one.
    """

    module: nn.Module
    ids: Tensor
    tensors: dict[str, int]
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass
class Channels:
    """A network's channels.

    Attributes:
        products: Linears and convolutions in the order of their calls.
        followers: what loses channels beside them.
    """

    products: list[LinearOperation] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
    _parent: list[int] = field(default_factory=list)
    _pinned: dict[int, str] = field(default_factory=dict)
    _used: list[Tensor] = field(default_factory=list)

    def new(self, count: int) -> Tensor:
        """Fresh ids."""
        start = len(self._parent)
        self._parent += range(start, start + count)
        return torch.arange(start, start + count)

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Let ids leave together only, pair by pair."""
        for first, second in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True):
            self._parent[self._root(first)] = self._root(second)

    def pin(self, ids: Tensor, reason: str) -> None:
        """Let ids stay; the first reason is kept, as a sentence about the unit."""
        for entry in ids.unique().tolist():
            self._pinned.setdefault(entry, reason)

    def use(self, ids: Tensor) -> None:
        """Say that something reads these, where they stay, which is no product."""
        self._used.append(ids.flatten())

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
        roots = self._roots()
        need = torch.zeros(len(roots), dtype=torch.bool)
        need[roots[torch.tensor(list(self._pinned), dtype=torch.long)]] = True
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

    def staying(self, need: Tensor) -> dict[str, dict[str, tuple[int, ...]]]:
        """Units that are dead (constant, or read by nothing) and stay.

        Args:
            need: from `needed`.

        Returns:
            By layer and reason: the units.
        """
        roots = self._roots()
        pinned = {int(roots[entry]): reason for entry, reason in reversed(self._pinned.items())}
        shared = roots.bincount(minlength=len(roots)) > 1
        read, refused = self._readers()
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for product in self.products:
            for unit, entry in enumerate(product.outputs.tolist()):
                constant = product.constant is not None and bool(product.constant[unit])
                if not need[entry] or not (constant or not (read[entry] or entry in self._pinned)):
                    continue
                root = int(roots[entry])
                if entry in self._pinned:
                    reason = self._pinned[entry]
                elif root in pinned:
                    reason = f"meets another branch, of which a channel {pinned[root]}"
                elif entry in refused:
                    reason = f"is a constant that {refused[entry]!r} cannot take into its bias"
                elif shared[root]:
                    reason = "leaves with others only (a sum, a group, a head), of which one is needed"
                else:
                    reason = "is kept so that the layer is not empty"
                reasons = found.setdefault(product.name, {})
                reasons[reason] = (*reasons.get(reason, ()), unit)
        return found

    def _readers(self) -> tuple[Tensor, dict[int, str]]:
        """Which ids something reads, and which constants a product reads that cannot go into its bias."""
        read = torch.zeros(len(self._parent), dtype=torch.bool)
        refused: dict[int, str] = {}
        for ids in self._used:
            read[ids] = True
        for product in self.products:
            used = torch.ones_like(product.foldable) if product.reads is None else product.reads.any(dim=0)
            read[product.inputs.ids[used]] = True
            constant = used & product.inputs.known & ~product.foldable
            refused |= dict.fromkeys(product.inputs.ids[constant].tolist(), product.name)
        return read, refused

    def _roots(self) -> Tensor:
        return torch.tensor([self._root(entry) for entry in range(len(self._parent))], dtype=torch.long)


def constants(module: Prunable, value: Tensor) -> Tensor:
    """What a layer makes of inputs that are constant everywhere (no padding in sight), float64 on the CPU.

    Args:
        module: the layer.
        value: ``[in]``, float64; zero where an input is not to be counted.

    Returns:
        ``[out]``: the bias plus, over the inputs, the sum of the kernel times the value.
    """
    groups = getattr(module, "groups", 1)
    weight = rows(module).unflatten(0, (groups, -1))
    value = value.view(groups, -1)
    used = value.ne(0).any(dim=0).nonzero()[:, 0]
    kernels = weight[:, :, used.to(weight.device)].cpu().double()
    kernels = kernels.flatten(3).sum(dim=3) if kernels.dim() > 3 else kernels
    result = torch.einsum("goi,gi->go", kernels, value[:, used]).flatten()
    return result if module.bias is None else result + module.bias.detach().cpu().double()


def rows(module: Prunable) -> Tensor:
    """A layer's weight with units first, ``[out, in / groups, ...]``: a transposed convolution has its inputs first."""
    weight = module.weight.detach()
    return weight.transpose(0, 1) if getattr(module, "transposed", False) else weight
