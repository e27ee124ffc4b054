"""How much the network's final loss minds an error in a layer's outputs: the Fisher information of pre-activations.

Let g be the gradient of an image's negative log-likelihood ``-log p(y)`` in a layer's pre-activations z
(``[positions, units]``; one position in a Linear layer on a vector), with the label y drawn from the network's own
softmax. To second order, whatever the true label is::

    KL(p(. | z) || p(. | z + dz)) = 1/2 dz^T F dz,    F = E_y[g g^T]

F is at the same time the generalised Gauss-Newton matrix of the cross entropy in z. Averaged over images, with errors
dz that are uncorrelated between positions and between units, of the same mean square everywhere, and independent of g
(assumptions, all three), only F's trace is left::

    KL = 1/2 s_l E_l,    s_l = mean over images of sum over positions of mean over units of g^2

where E_l is the layer error: the mean over images and positions of ``||dz||^2``, summed over units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lobs.inputs import network_input
from lobs.layers import prunable_layers, unit_outputs
from lobs.modes import evaluation_mode


def output_sensitivity(
    model: nn.Module,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    *,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, float]:
    """s_l of every layer, without labels (see the module's text for formula and assumptions).

    Drawing one label y per image would do, but a network that is nearly certain then gives almost only zeros and
    rarely a large value. Here all labels are mixed with random signs e_y, one backward pass per batch as well::

        v = sum_y e_y sqrt(p_y) (p - onehot(y)),    E_e[v v^T] = E_y[(p - onehot(y)) (p - onehot(y))^T]

    so g = J^T v has the same expected square and far less noise.

    Args:
        model: the network; its outputs are class logits ``[images, classes]``. Parameters' gradients stay as they are.
        batches: inputs, or tuples of which the first entry is the input; read once.
        layers: names or patterns; None takes every Linear and Conv2d that is called.
        seed: of the signs.
        progress: wraps the iterable.

    Returns:
        s_l by layer, in the order of their first call. A layer called several times per image adds its calls up.

    Raises:
        ValueError: there is no batch, a layer asked for is never called, or the outputs are not class logits.
    """
    modules = prunable_layers(model, layers)
    outputs: list[tuple[str, Tensor]] = []

    def hook_of(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            outputs.append((name, output))
            return output.clone()  # so that an activation in place leaves what is remembered alone

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, float] = {}
    images = 0
    try:
        with evaluation_mode(model), torch.enable_grad():
            for batch in batches if progress is None else progress(batches):
                outputs.clear()
                inputs = network_input(batch, model)
                logits = model(inputs)
                signs = torch.randint(0, 2, class_logits(logits).shape, generator=generator) * 2 - 1
                direction = mixed_gradient(logits.detach(), signs)
                gradients = torch.autograd.grad(logits, [output for _, output in outputs], direction, allow_unused=True)
                for (name, _), gradient in zip(outputs, gradients, strict=True):
                    square = 0.0
                    if gradient is not None:
                        units = unit_outputs(modules[name], gradient)
                        square = float(units.double().square().sum()) / units.shape[1]
                    sums[name] = sums.get(name, 0.0) + square
                images += len(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not images:
        raise ValueError("no calibration batch: batches is empty (an iterator that was already used up?)")
    never = [name for name in modules if name not in sums]
    if layers is not None and never:
        raise ValueError(f"layer {never[0]!r} is never called in the network's forward pass: leave it out")
    return {name: total / images for name, total in sums.items()}


def class_logits(outputs: object) -> Tensor:
    """The network's outputs, once they are known to be ``[images, classes]``.

    Args:
        outputs: whatever the network returned.

    Returns:
        The same.

    Raises:
        ValueError: they have another shape.
    """
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"the network's outputs must be class logits [images, classes], got {shape}")
    return outputs


def mixed_gradient(logits: Tensor, signs: Tensor) -> Tensor:
    """``v = sum_y e_y sqrt(p_y) (p - onehot(y))``, a combination of all labels' gradients in the logits.

    Args:
        logits: ``[images, classes]``.
        signs: e, +1 or -1, in the same shape.

    Returns:
        v, in the shape and type of the logits.
    """
    probabilities = logits.double().softmax(dim=1)
    weights = signs.to(probabilities) * probabilities.sqrt()
    return (weights.sum(dim=1, keepdim=True) * probabilities - weights).to(logits)
