"""Multi-head attention from which heads can leave, and transformer layers, which torch.fx does not look into.

nn.MultiheadAttention insists on heads that together are as wide as its inputs. Its parts, as Linears of their own, need
not be: a head leaves with its rows of ``q_proj``, ``k_proj`` and ``v_proj`` and its columns of ``out_proj``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from lobs.compaction import products, steps
from lobs.compaction.channels import Axis, Follower
from lobs.layers.attention import PARTS

if TYPE_CHECKING:
    from lobs.compaction.trace import Node, Walk

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_PARTS = (*PARTS, "out_proj")
_STACKS = (*_LAYERS, nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer)


class CompactAttention(nn.Module):
    """Scaled dot-product attention with as many heads as are left; called like nn.MultiheadAttention.

    The weights that it gives besides are those of the heads that are left, and averaged over these.

    Attributes:
        q_proj: makes the queries, ``[heads * head_dim, embed_dim]``; likewise ``k_proj`` and ``v_proj``.
        out_proj: joins the heads.
        kept_heads: which of the original's heads these are.
        num_heads: their number.
    """

    kept_heads: Tensor
    # What torch's transformer layers ask of attention; they take their own way where these say so.
    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = original.embed_dim, original.num_heads
        self.dropout, self.batch_first = original.dropout, original.batch_first
        joint = original.in_proj_weight
        weights = [original.q_proj_weight, original.k_proj_weight, original.v_proj_weight]
        biases = [None] * 3 if original.in_proj_bias is None else original.in_proj_bias.chunk(3)
        for name, weight, bias in zip(_PARTS, weights if joint is None else joint.chunk(3), biases, strict=False):
            setattr(self, name, _linear(weight, bias, original.in_proj_bias))
        self.out_proj = _linear(original.out_proj.weight, original.out_proj.bias, original.out_proj.bias)
        heads = torch.arange(self.num_heads, device=original.out_proj.weight.device)
        self.register_buffer("kept_heads", heads)
        self.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention's.

        Args:
            query: ``[batch, length, embed_dim]``, or with the first two the other way round, or without a batch.
            key: likewise.
            value: likewise.
            key_padding_mask: keys to leave out, ``[batch, keys]``.
            need_weights: whether attention weights are given, too.
            attn_mask: ``[queries, keys]``, or one for each head of the original and each of the batch.
            average_attn_weights: over the heads.
            is_causal: says that ``attn_mask`` is causal.

        Returns:
            The outputs, and the weights or None.

        Raises:
            ValueError: ``is_causal`` without a mask.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True says what attn_mask is: it needs one")
        batched = query.dim() == 3
        inputs = [query, key, value]
        if not batched:
            inputs = [entry[None] for entry in inputs]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            inputs = [entry.transpose(0, 1) for entry in inputs]
        layers: Any = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (
            layer(entry).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, entry in zip(layers, inputs, strict=True)
        )
        mask = self._mask(key_padding_mask, attn_mask, q)
        weights = None
        if need_weights:
            scores = q @ k.mT * q.shape[-1] ** -0.5
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, self.dropout, self.training)
            mixed = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _mask(self, padding: Tensor | None, mask: Tensor | None, like: Tensor) -> Tensor | None:
        """Both masks as what is added to the scores, ``[batch or 1, heads or 1, queries or 1, keys]``."""
        found = []
        if padding is not None:
            found.append(_additive(padding, like)[:, None, None])
        if mask is not None:
            mask = _additive(mask, like)
            each = mask.dim() == 3
            found.append(mask.unflatten(0, (len(like), -1))[:, self.kept_heads] if each else mask[None, None])
        return sum(found[1:], found[0]) if found else None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    empty = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    return empty.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask.to(like)


def _linear(weight: Tensor, bias: Tensor | None, owner: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    if bias is not None and owner is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=owner.requires_grad)
    return layer


def split(
    model: nn.Module, called: Iterable[str], plain: Callable[[nn.Module], bool]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Put attention modules' parts in their places.

    Args:
        model: is changed.
        called: names of modules that are called as a whole.
        plain: whether a module does what its class does, on tensors of its own.

    Returns:
        The attention modules by name, and by the names of parts why others stay as they are.
    """
    modules = dict(model.named_modules())
    nested = {
        module
        for stack in modules.values()
        if isinstance(stack, nn.TransformerEncoder) and getattr(stack, "use_nested_tensor", False)
        for module in stack.modules()
    }
    found: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    for name in called:
        for inner, module in modules[name].named_modules(prefix=name):
            if not isinstance(module, nn.MultiheadAttention):
                continue
            reason = ""
            if type(module) is not nn.MultiheadAttention or (inner != name and type(modules[name]) not in _STACKS):
                reason = "belongs to a class that is not known"
            elif not name or not plain(modules[name]):
                reason = "is called more than once, has hooks or shares its weights"
            elif module.bias_k is not None or module.add_zero_attn:
                reason = "attends to more than its inputs (add_bias_kv, add_zero_attn)"
            elif module in nested:
                # Such a stack gives zeros for padding, which it does not with attention of our own.
                reason = "is in a TransformerEncoder with enable_nested_tensor=True, which needs attention as it is"
            if reason:
                skipped |= {f"{inner}.{part}": reason for part in _PARTS}
            else:
                found[inner] = module
    for name, module in found.items():
        put(model, name, CompactAttention(module))  # type: ignore[arg-type]
    return found, skipped


def join(model: nn.Module, originals: dict[str, nn.Module]) -> None:
    """Put attention modules back that have lost nothing, and those that are left into the mode of the original.

    Args:
        model: is changed.
        originals: from `split`.
    """
    for name, module in originals.items():
        parts: Any = model.get_submodule(name)
        sizes = [getattr(parts, part).weight.shape for part in _PARTS]
        original: Any = CompactAttention(module)  # type: ignore[arg-type]
        if sizes == [getattr(original, part).weight.shape for part in _PARTS]:
            put(model, name, module)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module into the place of another one, under all of its names."""
    old = model.get_submodule(name)
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = module


def _heads(walk: Walk, name: str, sources: Iterable[Axis | None], rank: int) -> Axis:
    """Attention of which only the output is used.

    A head's weights sum to one over the keys: a value that is the same everywhere comes out as it is.

    Args:
        walk: the pass.
        name: of the module.
        sources: queries, keys and values; None: nothing is known.
        rank: their number of dimensions.

    Returns:
        The outputs.
    """
    module: Any = walk.modules[name]
    place = (rank - 1, rank)
    q, k, v = (
        products.product(walk, f"{name}.{part}", source, place, True)
        for part, source in zip(_PARTS[:3], sources, strict=True)
    )
    heads = v.ids.view(module.num_heads, -1)
    for entry in (q, k, v):
        width = entry.ids.numel() // module.num_heads
        walk.channels.tie(entry.ids, heads[:, 0].repeat_interleave(width))
    walk.channels.use(torch.cat([q.ids.flatten(), k.ids.flatten()]))
    walk.channels.followers.append(Follower(module, heads[:, 0], {"kept_heads": 0}, {"num_heads": 1}))
    return products.product(walk, f"{name}.out_proj", v, place, True)


def _attention(walk: Walk, node: Node, module: CompactAttention) -> tuple[Axis, ...] | None:
    names = ("query", "key", "value")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    entries = [given.get(name) for name in names]
    read = all(user.target is operator.getitem and (user.args[1] == 0 or not user.users) for user in node.users)
    if not read or not all(isinstance(entry, fx.Node) and entry in walk.shapes for entry in entries):
        return None  # the weights are used, too, which an average over fewer heads would change
    for mask in node.all_input_nodes:
        if mask not in entries:
            walk.pin(walk.axes[mask], f"is read by {walk.label(node)}")
    rank = len(walk.shapes[entries[0]])
    return (_heads(walk, node.target, [walk.axis(entry) for entry in entries], rank),)


def _stack(walk: Walk, node: Node, module: nn.Module) -> None:
    """Transformer layers: their inputs, sums and norms stay, heads and hidden units can leave."""
    for name, layer in module.named_modules(prefix=node.target):
        if type(layer) not in _LAYERS:
            continue
        for key, child in layer.named_children():
            if type(child) is CompactAttention:
                walk.pin(_heads(walk, f"{name}.{key}", (None, None, None), 3), f"feeds a sum and LayerNorm in {name!r}")
        hidden: Axis | None = products.product(walk, f"{name}.linear1", None, (2, 3), True)
        hidden = _activated(walk, layer.activation, hidden)
        outputs = products.product(walk, f"{name}.linear2", hidden, (2, 3), True)
        walk.pin(outputs, f"feeds a sum and LayerNorm in {name!r}")


def _activated(walk: Walk, activation: Any, hidden: Axis | None) -> Axis | None:
    if hidden is not None and activation in steps.POINTWISE:
        return hidden.mapped(activation)
    if hidden is not None and type(activation) in steps.POINTWISE_MODULES:
        return steps.MODULES[type(activation)](walk, None, activation, hidden)
    walk.pin(hidden, f"is read by {type(activation).__name__}")
    return None


MODULES: dict[type, Callable] = {CompactAttention: _attention, **dict.fromkeys(_STACKS, _stack)}
