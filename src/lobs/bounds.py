"""Lemma 3.1 and Theorem 3.2: what the layers' errors say about the pruned network's output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor, nn

from lobs.base.warning import warn
from lobs.calibration.statistics import LayerStatistics, Statistics, check_fit, layer_error
from lobs.layers.matrix import view_of, weight_matrix
from lobs.layers.network import prunable_layers

# Maps that bring no two points farther apart, with parameters as `_lipschitz` asks for.
LIPSCHITZ = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softsign, nn.Softmax),
    *(nn.LogSigmoid, nn.Softplus, nn.Softshrink, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
}
# A largest input counts in every window that it is in; a mean does not exceed its inputs however windows overlap.
MAXIMA = {nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d}
# Where Softplus goes over to the identity earlier than torch has it by default, it jumps.
SMOOTH = 20


@dataclass(frozen=True)
class ErrorBound:
    """The right-hand side of Theorem 3.2.

    Attributes:
        layers: per layer its term, ``(prod_{l>k} ||Theta_hat_l||_F) sqrt(dE_k)``, in units of the network's output:
            the root of the mean over inputs of the squared norm of the output's change.
        total: their sum, >= the measured ``||Y_tilde_L - Y_L||_F / sqrt(n)`` where there is no caveat.
        caveat: what of the network the theorem does not cover, so that the output may change by more; None: nothing.
    """

    layers: dict[str, float]
    total: float
    caveat: str | None = None


def layer_error_bound(weight: Tensor, pruned: Tensor, statistics: LayerStatistics) -> float:
    """Lemma 3.1: eps_l = ||Y_hat_l - Y_l||_F / sqrt(n) <= sqrt(E(Z_hat_l)), because a ReLU is 1-Lipschitz.

    Args:
        weight: the trained ``[out, d]``.
        pruned: the pruned one.
        statistics: of the layer's inputs; n counts its samples.

    Returns:
        sqrt(E), in units of the layer's output.
    """
    return sqrt(layer_error(pruned.double() - weight.double(), statistics.second_moment))


@torch.no_grad()
def error_bound(model: nn.Module, pruned: nn.Module, statistics: Statistics) -> ErrorBound:
    """Theorem 3.2's bound on the output error of the pruned network.

    It holds for a chain of layers with only 1-Lipschitz maps (ReLU, max pooling, dropout) between them::

        eps~_L <= sum_{k<L} (prod_{l=k+1}^{L} ||Theta_hat_l||_F) sqrt(dE_k) + sqrt(dE_L)

    dE_k is the layer's E on the dense network's inputs, per network input: a convolution's E per position times its
    positions. A convolution counts an input up to ``prod ceil(kernel / stride)`` times, and its norm is multiplied by
    the root of that. Biases cancel and are left out of the norms. Whatever else there is (batch norm, max pooling with
    windows that overlap, a forward function, which may add branches or multiply) is a caveat, with a warning.

    Args:
        model: the dense network.
        pruned: the same network with pruned weights.
        statistics: of the dense network's inputs to the layers that were pruned; they also tell which other layers are
            called, whose norms count.

    Returns:
        The bound and its terms.

    Raises:
        ValueError: the two networks' layers differ, or the statistics are another network's.
        TypeError: they are no `Statistics`.
    """
    if not isinstance(statistics, Statistics):
        raise TypeError(f"statistics must come from lobs.collect_statistics, got {type(statistics).__name__}")
    dense, sparse = prunable_layers(model), prunable_layers(pruned)
    if dense.keys() != sparse.keys():
        raise ValueError(f"the networks have different layers: {', '.join(dense.keys() ^ sparse.keys())}")
    for name, layer in statistics.items():
        if name not in dense:
            raise ValueError(f"the statistics hold layer {name!r}; the networks have {', '.join(dense)}")
        for modules in (dense, sparse):
            check_fit(name, modules[name], layer)
    if statistics.calls.of_another(model):
        raise ValueError(
            "the statistics were collected from another network, or from this one before it changed: collect them again"
        )
    weights = {name: weight_matrix(dense[name], layer.bias) for name, layer in statistics.items()}
    caveat = not_covered(model)
    if caveat is not None:
        warn(f"the error bound is none here: {caveat}")
    return replace(bound_from_weights(weights, pruned, statistics), caveat=caveat)


def not_covered(model: nn.Module) -> str | None:
    """What of a network Theorem 3.2 does not cover; None where it is a chain of layers and 1-Lipschitz maps."""
    layers, seen = prunable_layers(model), set[nn.Module]()
    for name, module in model.named_modules(remove_duplicate=False):
        kind = f"{type(module).__name__}{f' {name!r}' if name else ''}"
        if isinstance(module, nn.Sequential):
            if type(module).forward is not nn.Sequential.forward:
                return f"{kind} has a forward function of its own"
        elif name in layers and module not in seen:
            seen.add(module)
        elif not _lipschitz(module):
            return f"{kind} is more than a chain of layers, each called once, and 1-Lipschitz maps"
    return None


def _lipschitz(module: nn.Module) -> bool:
    kind = type(module)
    if kind in MAXIMA:
        sizes = (module.kernel_size, module.stride, module.dilation)
        kernel, stride, dilation = (torch.tensor(size) for size in sizes)
        return bool((kernel <= stride).all() and (dilation == 1).all())
    if isinstance(module, nn.CELU):  # exp(x / alpha) below zero
        return kind is nn.CELU and module.alpha > 0
    if isinstance(module, nn.Softplus) and module.threshold < SMOOTH:
        return False
    slope = max(abs(getattr(module, "negative_slope", 0.0)), abs(getattr(module, "alpha", 0.0)))
    divided = getattr(module, "divisor_override", None) is None and getattr(module, "count_include_pad", True)
    return kind in LIPSCHITZ and slope <= 1 and divided


@torch.no_grad()
def bound_from_weights(weights: Mapping[str, Tensor], pruned: nn.Module, statistics: Statistics) -> ErrorBound:
    """`error_bound` from the dense weights alone, ``[out, d]`` by layer; a layer left out was not changed."""
    terms: dict[str, float] = {}
    growth = 1.0
    modules = prunable_layers(pruned)
    called = [name for name in statistics.calls.called if name in modules]
    for name in reversed([*called, *(name for name in statistics if name not in called)]):
        module = modules[name]
        if name in statistics:
            layer, error = statistics[name], 0.0
            if name in weights:
                change = weight_matrix(module, layer.bias).double() - weights[name].double()
                error = layer_error(change, layer.second_moment.to(change.device))
            terms[name] = growth * sqrt(error * layer.samples / layer.inputs)
        growth *= float(module.weight.double().norm()) * sqrt(view_of(module).overlap(module))
    layers = {name: terms[name] for name in statistics}
    return ErrorBound(layers, sum(layers.values()))
