"""`nn.LSTM`, `nn.GRU` and `nn.RNN` in parts: the matrices of inputs and of states, of every layer and direction.

With ``a = W_ih x_t + b_ih`` and ``c = W_hh h_(t-1) + b_hh``, the states of torch's documentation::

    RNN:   h_t = tanh(a + c), or relu
    GRU:   r, z = sigmoid(a_r + c_r), sigmoid(a_z + c_z);  n = tanh(a_n + r c_n);  h_t = (1 - z) n + z h_(t-1)
    LSTM:  i, f, g, o = chunks of a + c;  s_t = sigmoid(f) s_(t-1) + sigmoid(i) tanh(g);  h_t = sigmoid(o) tanh(s_t)
           (with ``proj_size``: h_t = W_hr of that)

``W_ih`` is called once with all time steps, ``W_hh`` once per step: each step's state is a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lobs.layers.composite import Composite, Slice


class Recurrent(Composite):
    """``ih_l0``, ``hh_l0`` (and ``hr_l0``), ``ih_l0_reverse`` and so on, as torch names the weights."""

    kinds = (nn.LSTM, nn.GRU, nn.RNN)

    def slices(self, module: nn.RNNBase) -> dict[str, tuple[Slice, Slice | None]]:
        """Whole parameters."""
        pieces: dict[str, tuple[Slice, Slice | None]] = {}
        for suffix in _suffixes(module):
            for kind in ("ih", "hh"):
                bias = Slice(f"bias_{kind}_{suffix}") if module.bias else None
                pieces[f"{kind}_{suffix}"] = Slice(f"weight_{kind}_{suffix}"), bias
            if module.proj_size:
                pieces[f"hr_{suffix}"] = Slice(f"weight_hr_{suffix}"), None
        return pieces

    def forward(
        self, module: nn.RNNBase, parts: Mapping[str, nn.Linear], input: Any, hx: Any = None
    ) -> tuple[Any, Any]:
        """Layer by layer and step by step; a `PackedSequence` as torch packs it."""
        packed = isinstance(input, PackedSequence)
        if packed:
            data, sizes, order, back = input
            count = int(sizes[0])
        else:
            batched = input.dim() == 3
            steps = input if batched else input[:, None]
            steps = steps.transpose(0, 1) if batched and module.batch_first else steps
            data, count, order, back = steps.flatten(0, 1), steps.shape[1], None, None
            sizes = torch.full((steps.shape[0],), count)
        cells = isinstance(module, nn.LSTM)
        states = _start(module, data, count, hx, order, unbatched=not packed and not batched)
        finals: list[list[Tensor]] = []
        directions = 2 if module.bidirectional else 1
        suffixes = _suffixes(module)
        for layer in range(module.num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                own = [state[index] for state in states]
                output, final = _direction(module, parts, suffixes[index], data, sizes.tolist(), own, bool(direction))
                outputs.append(output)
                finals.append(final)
            data = torch.cat(outputs, -1)
        ends = [torch.stack(list(kind)) for kind in zip(*finals, strict=True)]
        ends = ends if back is None else [end[:, back] for end in ends]
        if packed:
            return PackedSequence(data, sizes, order, back), tuple(ends) if cells else ends[0]
        output = data.unflatten(0, (len(sizes), count))
        if not batched:
            output, ends = output[:, 0], [end[:, 0] for end in ends]
        elif module.batch_first:
            output = output.transpose(0, 1)
        return output, tuple(ends) if cells else ends[0]


def _suffixes(module: nn.RNNBase) -> list[str]:
    ends = ["", "_reverse"] if module.bidirectional else [""]
    return [f"l{layer}{end}" for layer in range(module.num_layers) for end in ends]


def _start(
    module: nn.RNNBase, data: Tensor, count: int, hx: Any, order: Tensor | None, unbatched: bool
) -> list[Tensor]:
    """The first states, ``[layers * directions, batch, size]`` each: h, and an LSTM's cells."""
    if hx is None:
        layers = module.num_layers * (2 if module.bidirectional else 1)
        sizes = [module.proj_size or module.hidden_size, *([module.hidden_size] if isinstance(module, nn.LSTM) else [])]
        return [data.new_zeros(layers, count, size) for size in sizes]
    given = list(hx) if isinstance(module, nn.LSTM) else [hx]
    given = [state[:, None] for state in given] if unbatched else given
    return given if order is None else [state[:, order] for state in given]


def _direction(
    module: nn.RNNBase,
    parts: Mapping[str, nn.Linear],
    suffix: str,
    data: Tensor,
    sizes: list[int],
    first: list[Tensor],
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """One layer in one direction over steps of falling sizes; its outputs and its last states."""
    steps = list(_projected(parts[f"ih_{suffix}"], data, sizes).split(sizes))
    outputs: list[Tensor] = []
    count = sizes[-1] if reverse else sizes[0]
    state = [part[:count] for part in first]
    ended: list[list[Tensor]] = []  # of the sequences that are over before the last step
    for step in reversed(steps) if reverse else steps:
        rows = len(step)
        if rows < len(state[0]):
            ended.append([part[rows:] for part in state])
            state = [part[:rows] for part in state]
        elif rows > len(state[0]):
            state = [torch.cat([part, own[len(part) : rows]]) for part, own in zip(state, first, strict=True)]
        state = _step(module, step, parts[f"hh_{suffix}"](state[0]), state)
        if module.proj_size:
            state = [parts[f"hr_{suffix}"](state[0]), state[1]]
        outputs.append(state[0])
    final = [torch.cat([part, *(end[kind] for end in reversed(ended))]) for kind, part in enumerate(state)]
    return torch.cat(outputs[::-1] if reverse else outputs), final


def _projected(part: nn.Linear, data: Tensor, sizes: list[int]) -> Tensor:
    """W_ih of all steps; the layer is given one input's steps after the other's, unless their number differs."""
    if sizes[0] != sizes[-1]:
        return part(data)
    return part(data.unflatten(0, (len(sizes), sizes[0])).transpose(0, 1)).transpose(0, 1).flatten(0, 1)


def _step(module: nn.RNNBase, given: Tensor, kept: Tensor, state: list[Tensor]) -> list[Tensor]:
    """The next state from a, c and the last one."""
    if module.mode == "LSTM":
        i, f, g, o = (given + kept).chunk(4, 1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return [o.sigmoid() * cell.tanh(), cell]
    if module.mode == "GRU":
        (a_r, a_z, a_n), (c_r, c_z, c_n) = given.chunk(3, 1), kept.chunk(3, 1)
        z = (a_z + c_z).sigmoid()
        n = (a_n + (a_r + c_r).sigmoid() * c_n).tanh()
        return [(1 - z) * n + z * state[0]]
    total = given + kept
    return [total.tanh() if module.mode == "RNN_TANH" else total.relu()]
