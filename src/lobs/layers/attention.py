"""`nn.MultiheadAttention` in parts: the projections of queries, keys and values, and that of the output.

With ``q = W_q x_q + b_q``, ``k = W_k x_k + b_k``, ``v = W_v x_v + b_v`` everything up to the heads' outputs is torch's
own function, given the identity in the place of the weights. ``out_proj`` is a Linear submodule and called as one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from lobs.layers.composite import Composite, Slice

PARTS = ("q_proj", "k_proj", "v_proj")


class Attention(Composite):
    """``q_proj``, ``k_proj`` and ``v_proj``: thirds of ``in_proj_weight``, or weights of their own."""

    kinds = (nn.MultiheadAttention,)

    def slices(self, module: nn.MultiheadAttention) -> dict[str, tuple[Slice, Slice | None]]:
        """Thirds of the rows."""
        size = module.embed_dim
        pieces: dict[str, tuple[Slice, Slice | None]] = {}
        for index, name in enumerate(PARTS):
            rows = slice(index * size, (index + 1) * size)
            joint = module._qkv_same_embed_dim
            weight = Slice("in_proj_weight", rows) if joint else Slice(f"{name}_weight")
            pieces[name] = weight, None if module.in_proj_bias is None else Slice("in_proj_bias", rows)
        return pieces

    def forward(
        self,
        module: nn.MultiheadAttention,
        parts: Mapping[str, nn.Linear],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Projections by the parts, attention by torch."""
        # Layers are given one input's tokens after the other's, whichever way the module is.
        batched, first = query.dim() == 3, module.batch_first
        given = [entry.transpose(0, 1) if batched and not first else entry for entry in (query, key, value)]
        projected = [parts[name](entry) for name, entry in zip(PARTS, given, strict=True)]
        q, k, v = (entry.transpose(0, 1) if batched else entry for entry in projected)
        same = torch.eye(module.embed_dim, dtype=query.dtype, device=query.device)
        output, weights = functional.multi_head_attention_forward(
            q,
            k,
            v,
            module.embed_dim,
            module.num_heads,
            None,
            None,
            module.bias_k,
            module.bias_v,
            module.add_zero_attn,
            0.0,  # dropout
            same,
            None,
            training=False,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=True,
            q_proj_weight=same,
            k_proj_weight=same,
            v_proj_weight=same,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        output = module.out_proj(output.transpose(0, 1) if batched else output)
        return output.transpose(0, 1) if batched and not first else output, weights
