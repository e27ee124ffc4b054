"""What a layer's error costs the network: the curves that an allocation adds up over the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn

from lobs.allocation.knapsack import Curve
from lobs.allocation.output_distance import measured_losses
from lobs.base.warning import warn
from lobs.calibration.output_fisher import Sensitivity, output_sensitivity, sensitivity_note
from lobs.layers.matrix import view_of
from lobs.layers.network import prunable_layers
from lobs.registry import ALLOCATIONS, GLOBAL_CANDIDATES, unknown_name
from lobs.solvers.path import PruningPath


def loss_curves(
    paths: Mapping[str, PruningPath],
    allocation: str,
    *,
    model: nn.Module | None = None,
    batches: Iterable | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, Curve]:
    """Each layer's loss after every count, as an allocation sees it; independent of the budget.

    Args:
        paths: of all layers, in the order of their calls.
        allocation: a name in `ALLOCATIONS` other than ``uniform``; ``measured_joint`` starts from ``fisher``.
        model: the dense network; ``theorem`` and all that need batches need it.
        batches: calibration images; all but ``relative`` and ``theorem`` need them.
        progress: wraps the iterable of the layers that are measured.

    Returns:
        Removals and losses by layer.

    Raises:
        ValueError: the allocation is unknown or has no curves, or something that it needs is missing.
    """
    allocation = resolved(allocation, model is not None and batches is not None)
    if allocation not in ALLOCATIONS or allocation == "uniform":
        known = {name: line for name, line in ALLOCATIONS.items() if name != "uniform"}
        raise ValueError(unknown_name("allocation with loss curves", allocation, known))
    if allocation == "relative":
        return relative(paths)
    if model is None:
        raise ValueError(f"allocation {allocation!r} needs the dense network: give model=")
    if allocation == "theorem":
        return theorem(paths, model)
    if batches is None:
        raise ValueError(f"allocation {allocation!r} needs calibration images: give batches=")
    if allocation == "measured":
        return measured_losses(model, paths, batches, progress=progress)
    sensitivities = output_sensitivity(model, batches, list(paths))
    if note := sensitivity_note(sensitivities):
        warn(note)
    if allocation == "fisher_units":
        return fisher_units({name: path.weighted(sensitivities[name].together) for name, path in paths.items()})
    return fisher(paths, sensitivities, summed=allocation == "fisher_summed")


def resolved(allocation: str, measurable: bool) -> str:
    """An allocation that is no alias: ``global``, where nothing is compared, is one where the network can be run."""
    if allocation != "global":
        return allocation
    return GLOBAL_CANDIDATES[0] if measurable else "relative"


def relative(paths: Mapping[str, PruningPath]) -> dict[str, Curve]:
    """``E_l(c) / E_l(total)``: the share of what wiping the layer out would cost.

    Relative, because layers' outputs have different scales; a layer that is wiped out counts 1 whatever its size.

    Args:
        paths: of all layers.

    Returns:
        Removals and losses by layer.
    """
    curves = {}
    for name, path in paths.items():
        counts, errors = path.curve_points()
        whole = float(errors[-1])
        curves[name] = counts, errors / whole if whole > 0 else errors
    return curves


def theorem(paths: Mapping[str, PruningPath], model: nn.Module) -> dict[str, Curve]:
    """The layer's term of Theorem 3.2's bound, ``prod_{k>l} ||Theta_k||_F sqrt(E_l)``.

    The dense norms stand for the pruned ones, which are not known before the budget is shared out. E_l is per network
    input: a convolution's E times its positions, and its norm counts as often as an input element stands in a patch
    (see `lobs.bounds.error_bound`). Layers without a path are left out of the product.

    Args:
        paths: in the order of the layers' calls.
        model: the dense network.

    Returns:
        Removals and terms by layer, in units of the network's output.
    """
    modules = prunable_layers(model)
    growth = 1.0
    curves = {}
    for name in reversed(list(paths)):
        counts, errors = paths[name].curve_points()
        statistics = paths[name].statistics
        curves[name] = counts, growth * (errors * statistics.samples / statistics.inputs).sqrt()
        module = modules[name]
        growth *= float(module.weight.detach().double().norm()) * view_of(module).overlap(module) ** 0.5
    return {name: curves[name] for name in paths}


def fisher(
    paths: Mapping[str, PruningPath], sensitivities: Mapping[str, Sensitivity], summed: bool = False
) -> dict[str, Curve]:
    """``s_l E_l / 2``: the KL divergence of the network's outputs in nats, to second order.

    Args:
        paths: of all layers.
        sensitivities: from `output_sensitivity`; s_l is the mean of g_i over a layer's units.
        summed: of ``together`` instead of ``apart``.

    Returns:
        Removals and losses by layer.
    """
    curves = {}
    for name, path in paths.items():
        counts, errors = path.curve_points()
        g = sensitivities[name].together if summed else sensitivities[name].apart
        curves[name] = counts, float(g.mean()) * errors / 2
    return curves


def fisher_units(paths: Mapping[str, PruningPath]) -> dict[str, Curve]:
    """``sum_i g_i E_i / 2``, the same unit by unit.

    Args:
        paths: weighted by their units' sensitivities (`PruningPath.weighted`).

    Returns:
        Removals and losses by layer.
    """
    points = {name: path.curve_points() for name, path in paths.items()}
    return {name: (counts, errors / 2) for name, (counts, errors) in points.items()}
