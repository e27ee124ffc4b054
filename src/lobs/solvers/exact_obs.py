"""OBS done exactly inside a layer: the inverse follows every removal (Frantar & Alistarh 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from lobs.base.arguments import check_count, check_flag
from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.hessian import (
    DAMPING,
    DEAD_SCALE,
    DampedHessian,
    SingularStatisticsError,
    check_damping,
    damp,
    damp_rows,
)
from lobs.solvers.least_squares import solve_on_support
from lobs.solvers.path import PruningPath, RankedPath, with_bias_column
from lobs.solvers.ranking import Pattern, parse_pattern, ranks_of_order, row_ranks
from lobs.solvers.swaps import RefinedPath
from lobs.solvers.weighted import WeightedPath

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
# rows * 2/3 d^3 operations: above this (an hour on 2 cores in float64) only groups are offered; 4,096 x 4,096 passes.
MOST_OPERATIONS = 3e14
# A row's own inverse takes 1 GiB at this width in float32.
WIDEST = 16384
# Of inputs, where a layer is too large: a multiple of every usual N:M pattern's M.
GROUP = 512
# Rows on which "auto" compares precisions, and how far the error after any count may be off, relative to it.
CHECKED_ROWS, CHECKED_DIFFERENCE = 16, 1e-3
# How much of a curve may be rounding: with inputs nearly dependent, the inverse has entries whose rounding errors are
# as large as those that are left after some removals.
MOST_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-2}
# Groups of so few weights are eliminated together, as long as their inverses, one per unit, stay below this: measured,
# 576 groups of 9 inputs took 28 ms in the place of 1.4 s, and groups of more weights are faster one by one.
SMALL_GROUP, MOST_UNIT_BYTES = 144, 32 * 2**20
# The least-squares systems of a mask: above this a layer in groups is compensated group by group.
MOST_SOLVE_OPERATIONS = 1e14


@dataclass(frozen=True)
class ExactOBS(Solver):
    """Per output unit: remove the cheapest weight, compensate, downdate the inverse, repeat; units merged by cost.

    With H = Psi + lambda I restricted to a unit's remaining inputs (its error is ``E = dw^T H dw``)::

        increment = w_q^2 / [H^-1]_qq = 2 L_q               the cheapest next removal, with today's w and H^-1
        w    <- w - (w_q / [H^-1]_qq) H^-1 e_q              (paper, equation 5)
        H^-1 <- H^-1 - H^-1 e_q e_q^T H^-1 / [H^-1]_qq      the inverse without input q

    Units do not interact, so a unit's n-th removal costs what it costs whatever happens elsewhere. The layer's order
    takes the unit whose next removal is cheapest, which is to sort by the running maximum of each unit's increments.
    The path's errors are exact and include the damping term ``lambda ||dW||_F^2``. Weights that are zero already leave
    first and are out of H from the start; then come inputs that are always zero (they cost lambda w^2). The bias is
    never removed and compensates.

    Args:
        damping: lambda, relative to Psi's mean diagonal.
        pattern: N:M, kept of consecutive inputs; in a network's convolutions of consecutive channels.
        block: this many consecutive inputs leave together, scored by w_B^T ([H^-1]_BB)^-1 w_B. Counts that are
            multiples of it leave whole blocks; inputs that are always zero wait for their block. Of a block with zeros
            the others leave together.
        group_size: cut the inputs into groups of this many and eliminate each with its own diagonal block of H, for
            layers too wide otherwise. The weights are then solved over the whole layer while that is feasible, else
            group by group, and the curve is that of the block-diagonal H, an estimate. ``"auto"``: `GROUP` where the
            layer is too large otherwise.
        refine: at every count swap kept and removed weights of a unit while the error falls (`lobs.solvers.swaps`).
        precision: of the elimination, ``"float64"`` or ``"float32"`` (about half the time and memory; the errors
            agree within 1%). ``"auto"``: float32 where on some rows, eliminated in both, the summed error after every
            count is within `CHECKED_DIFFERENCE`; the path's note says what came out. The weights are always solved in
            float64 up to 8,192 inputs.
    """

    line: ClassVar[str] = (
        "OBS done exactly inside a layer: the inverse is downdated after every removal (Frantar & Alistarh 2022)"
    )
    damping: float = DAMPING
    pattern: str | Pattern | None = None
    block: int = 1
    group_size: int | str | None = None
    refine: bool = False
    precision: str = "float64"

    def __post_init__(self) -> None:
        check_damping(self.damping)
        check_count("block", self.block, 1)
        check_flag("refine", self.refine)
        if self.precision not in (*PRECISIONS, "auto"):
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, auto, got {self.precision!r}")

    def divides(self, weight: Tensor, statistics: LayerStatistics) -> bool:
        """Many small groups, as a depthwise convolution has, are solved together: a call for each takes longer."""
        if not super().divides(weight, statistics):
            return False
        size = statistics.second_moment.shape[-1]
        plain = self.pattern is None and self.block == 1 and not self.refine and self.precision == "float64"
        small = weight.numel() <= SMALL_GROUP * statistics.groups and len(weight) * size**2 * 8 <= MOST_UNIT_BYTES
        return not (plain and small and self.group_size in (None, "auto"))

    def _hessian(self, weight: Tensor, statistics: LayerStatistics) -> DampedHessian:
        if statistics.groups == 1:
            return damp(statistics, self.damping)
        return damp_rows(statistics, len(weight), self.damping)

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The order of all removals and the error after each.

        Returns:
            A nested path with an exact curve (measured where there are several groups), refined if asked for.

        Raises:
            SingularStatisticsError: the damped second moment cannot be inverted, or with too few digits.
            ValueError: an option is out of range, options exclude each other, or the layer is too large.
        """
        if self.group_size == "auto":
            return self._sized(len(weight), statistics).path(weight, statistics)
        self._check(statistics)
        if self.precision == "auto":
            solver, difference = self._precise(weight, statistics)
            path = solver.path(weight, statistics)
            off = f"float32's error differs by {difference:.1g} on some rows"
            path.note = "; ".join(filter(None, [path.note, f"eliminated in {solver.precision}: {off}"]))
            return path
        hessian = self._hessian(weight, statistics)
        self._check_size(len(weight), len(hessian.alive))
        parts = self._parts(weight, hessian)
        sequences = [self._sequence(weight[:, columns], part) for columns, part in parts]
        offsets = [columns[0] for columns, _ in parts]
        order = torch.cat([part[0].int() + int(start) for part, start in zip(sequences, offsets, strict=True)], dim=1)
        increments = torch.cat([part[1] for part in sequences], dim=1)
        keys = torch.cat([part[2] for part in sequences], dim=1)
        if statistics.groups > 1:
            dead = self._dead(weight, statistics).gather(1, order.long())
            places = (~dead).byte().argsort(dim=1, stable=True)
            order, increments, dead = (part.gather(1, places) for part in (order, increments, dead))
            increments.masked_fill_((hessian.scale == DEAD_SCALE).gather(1, order.long()), 0.0)
            keys = _merging_keys(increments, dead, statistics.groups)
        keys.masked_fill_(weight.gather(1, order.long()) == 0, -1.0)
        del sequences
        rank, curve, sensitivities = _merge(order, increments, keys, statistics.features)
        state = {"rank": rank, "curve": curve, "sensitivities": sensitivities}
        return self._found(weight, statistics, hessian, parts, state)

    def restore(self, weight: Tensor, statistics: LayerStatistics, state: Mapping[str, Tensor]) -> PruningPath:
        """The path without the elimination: order, errors and sensitivities of all removals are known."""
        if self.group_size == "auto":
            return self._sized(len(weight), statistics).restore(weight, statistics, state)
        hessian = self._hessian(weight, statistics)
        return self._found(weight, statistics, hessian, self._parts(weight, hessian), state)

    def _sized(self, rows: int, statistics: LayerStatistics) -> ExactOBS:
        """The solver for one layer: whole rows where they are feasible, else groups."""
        size = int(statistics.second_moment.diagonal(dim1=-2, dim2=-1).count_nonzero(-1).max())
        small = rows * 2 / 3 * size**3 <= MOST_OPERATIONS and size <= WIDEST
        whole = small or self.block > 1 or self.refine
        parsed = parse_pattern(self.pattern, statistics.features)
        width = parsed.width if parsed else 1
        return replace(self, group_size=None if whole else max(1, GROUP // width) * width)

    def _precise(self, weight: Tensor, statistics: LayerStatistics) -> tuple[ExactOBS, float]:
        """The solver in float32 where that is enough, else in float64, and the largest difference that was seen."""
        rows = weight[:: max(1, len(weight) // CHECKED_ROWS)][:CHECKED_ROWS]
        double, single = (replace(self, precision=name) for name in PRECISIONS)
        worst = 0.0
        for columns, part in self._parts(rows, damp(statistics, self.damping)):
            exact = double._sequence(rows[:, columns], part)[1].sum(0).cumsum(0)
            try:
                found = single._sequence(rows[:, columns], part)[1].sum(0).cumsum(0)
            except SingularStatisticsError:
                return double, float("inf")
            worst = max(worst, float(((found - exact).abs() / exact)[exact > 0].amax()) if (exact > 0).any() else 0.0)
        return (single if worst <= CHECKED_DIFFERENCE else double), worst

    def weighted(self, path: PruningPath, unit_weights: Tensor) -> WeightedPath:
        """The path merged anew: g multiplies all increments of a row and changes nothing within it."""
        state = path.state
        if state is None:
            return super().weighted(path, unit_weights)
        groups = path.statistics.groups if any("/" in key for key in state) else 1
        merged: dict[str, Tensor] = {}
        pairs = zip(path.weight.chunk(groups), unit_weights.to(path.weight.device).chunk(groups), strict=True)
        for index, (weight, g) in enumerate(pairs):
            prefix = f"{index}/" * (groups > 1)
            rank, sensitivities = state[f"{prefix}rank"], state[f"{prefix}sensitivities"]
            layer = path.statistics.group(index) if groups > 1 else path.statistics
            found = self._merged_anew(weight, layer, rank.to(weight.device), 2 * g[:, None] * sensitivities.to(g))
            merged |= {f"{prefix}{key}": value for key, value in found.items()}
        scale = unit_weights.sqrt().to(path.weight.device)
        result = self._scaled_back(path, scale, lambda rows, layer: self.restored(rows, layer, merged))
        result.state = state
        return result

    def _merged_anew(
        self, weight: Tensor, statistics: LayerStatistics, rank: Tensor, increments: Tensor
    ) -> dict[str, Tensor]:
        """The state that other increments of the same removals give, ``[out, features]`` like their rank."""
        leaving = int(torch.isfinite(increments).sum()) // len(rank)
        order = rank.argsort(dim=1)[:, :leaving]
        # A block competes with its whole cost, wherever those of its weights that are zero have gone.
        whole = increments.unflatten(1, (-1, self.block)).sum(2).repeat_interleave(self.block, dim=1).gather(1, order)
        increments = increments.gather(1, order)
        zero = weight.gather(1, order) == 0
        dead = self._dead(weight, statistics).gather(1, order)
        keys = _merging_keys(whole.masked_fill(zero, 0.0), dead, statistics.groups).masked_fill(zero, -1.0)
        parts = _merge(order, increments, keys, statistics.features)
        return dict(zip(("rank", "curve", "sensitivities"), parts, strict=True))

    def _dead(self, weight: Tensor, statistics: LayerStatistics) -> Tensor:
        """Inputs that are always zero, by row, bool ``[out, features]``: a row loses them before all others."""
        dead = torch.zeros_like(weight[:, : statistics.features], dtype=torch.bool)
        if self._among_the_others(weight, statistics.bias):
            return dead
        diagonal = statistics.second_moment.diagonal(dim1=-2, dim2=-1)[..., : statistics.features]
        silent = (diagonal == 0).reshape(statistics.groups, -1)
        return dead | silent.repeat_interleave(len(weight) // statistics.groups, dim=0)

    def _parts(self, weight: Tensor, hessian: DampedHessian) -> list[tuple[Tensor, DampedHessian]]:
        """The groups of inputs that are eliminated on their own: their columns and their Hessians."""
        size = cast("int | None", self.group_size)
        return list(_groups(hessian, size, whole=self._among_the_others(weight, hessian.bias)))

    def _among_the_others(self, weight: Tensor, bias: bool) -> bool:
        """Whether inputs that are always zero wait for their turn: for their block, or for a pattern's places."""
        # Where these places are few, zeros take them first, in each row its own.
        zeros = self.pattern is not None and bool((weight[:, : weight.shape[1] - bias] == 0).any())
        return self.block > 1 or zeros

    def _found(
        self,
        weight: Tensor,
        statistics: LayerStatistics,
        hessian: DampedHessian,
        parts: list[tuple[Tensor, DampedHessian]],
        state: Mapping[str, Tensor],
    ) -> PruningPath:
        rank, curve, sensitivities = (state[key].to(weight.device) for key in ("rank", "curve", "sensitivities"))
        curve = curve.cpu()
        solvable = len(weight) * (len(hessian.alive) / 2) ** 3 / 3 <= MOST_SOLVE_OPERATIONS

        def compensate(kept: Tensor) -> Tensor:
            mask = with_bias_column(kept, statistics.bias)
            if solvable or len(parts) == 1:
                return solve_on_support(weight, mask, hessian)
            return _solve_groups(weight, mask, parts)

        known = curve if len(parts) == 1 or not solvable else None  # None: measured on the solved weights
        total = len(curve) - 1
        path = RankedPath(weight, statistics, rank, total, compensate, known, hessian.damping, sensitivities)
        found = RefinedPath(path, hessian) if self.refine else path
        found.state = dict(state)
        if len(parts) > 1:
            found.note = f"eliminated in {len(parts)} groups of {self.group_size} inputs"
        return found

    def _check(self, statistics: LayerStatistics) -> None:
        features = statistics.features
        parsed = parse_pattern(self.pattern, features)
        if features % self.block:
            raise ValueError(f"block must divide the layer's {features} inputs, got {self.block}")
        if parsed and self.block > 1:
            raise ValueError(f"give a pattern or a block, not both: pattern={self.pattern} block={self.block}")
        unit = parsed.width if parsed else self.block
        size = None if self.group_size == "auto" else self.group_size
        if size is not None and (not isinstance(size, int) or size < 1 or size % unit):
            raise ValueError(f"group_size must be a positive multiple of {unit}, 'auto' or None; got {size!r}")
        if self.refine and (unit > 1 or size is not None):
            raise ValueError("refine=True swaps single weights of whole rows: leave out pattern, block and group_size")

    def _check_size(self, rows: int, size: int) -> None:
        width = min(size, cast("int | None", self.group_size) or size)
        operations = rows * 2 / 3 * width**2 * size
        if operations > MOST_OPERATIONS or width > WIDEST:
            raise ValueError(
                f"exact_obs of {rows} units with {size} inputs in groups of {width} needs {operations:.1e} operations "
                f"(accepted are {MOST_OPERATIONS:.0e}, and groups of up to {WIDEST}): use group_size=512 or another "
                f"that is small enough, or method lobs with resolve=True"
            )

    def _sequence(self, weight: Tensor, hessian: DampedHessian) -> tuple[Tensor, Tensor, Tensor]:
        """Every row's removals: which input, what it costs, and the key that orders it among all rows'."""
        features = hessian.size - hessian.bias
        alive = hessian.alive[: len(hessian.alive) - hessian.bias]
        if self.block > 1:
            quota = torch.tensor([features], device=weight.device)
            dead_order, dead_costs = weight.new_zeros(len(weight), 0).long(), weight.new_zeros(len(weight), 0)
            group = torch.zeros_like(alive)
        else:
            dead_order, dead_costs, group, quota = _dead_first(weight, hessian, self.pattern)
        if not len(alive):
            return dead_order, dead_costs, torch.zeros_like(dead_costs)
        scaled = weight[:, hessian.alive].double() * hessian.scale
        stays = group.new_full((int(hessian.bias),), -1)
        group = torch.cat([group, stays])
        gone = (weight[:, hessian.alive] == 0) & (group >= 0)
        largest = scaled.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        position, costs = self._eliminate(scaled / largest, gone, hessian, group, quota)
        if torch.isnan(costs).any():
            raise self._lost("lost all their digits", hessian)
        costs = costs * largest.square()
        order = torch.cat([dead_order, hessian.alive[position.long()]], dim=1)
        whole = costs.unflatten(1, (-1, self.block)).sum(2)  # a block competes with its whole cost
        running = whole.cummax(dim=1).values.repeat_interleave(self.block, dim=1)
        keys = torch.cat([torch.zeros_like(dead_costs), running], dim=1)
        return order, torch.cat([dead_costs, costs], dim=1), keys

    def _lost(self, what: str, hessian: DampedHessian) -> SingularStatisticsError:
        return SingularStatisticsError(
            f"the errors of removing some of {len(hessian.alive)} nearly dependent inputs {what} in {self.precision} "
            f"with damping {hessian.damping:.3g}: use a larger damping{' or float64' * (self.precision != 'float64')}"
        )

    def _eliminate(
        self, scaled: Tensor, gone: Tensor, hessian: DampedHessian, group: Tensor, quota: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Compiled loops on the CPU: ahead at every width measured (784 to 4,608 inputs).
        dtype = min(PRECISIONS[self.precision], hessian.inverse.dtype, key=lambda kind: kind.itemsize)
        rounding = float(hessian.inverse.diagonal(dim1=-2, dim2=-1).max()) * torch.finfo(dtype).eps
        if rounding > MOST_ROUNDING[dtype]:
            raise self._lost(f"may be off by {rounding:.1g} of themselves", hessian)
        if scaled.is_cuda or self.block > 1 or hessian.inverse.dim() == 3:
            from lobs.solvers._kernels import elimination_torch

            return elimination_torch.eliminate(scaled, gone, hessian.inverse, group, quota, dtype, self.block)
        from lobs.solvers._kernels import elimination_numba

        return elimination_numba.eliminate(scaled, gone, hessian.inverse, group, quota, dtype)


def _groups(hessian: DampedHessian, group_size: int | None, whole: bool) -> Iterator[tuple[Tensor, DampedHessian]]:
    """Columns of the layer (bias included in each group) and the Hessian restricted to them."""
    features = hessian.size - hessian.bias
    if whole:
        hessian = hessian.with_dead_inputs()
    columns = torch.arange(hessian.size, device=hessian.alive.device)
    if group_size is None or group_size >= features:
        yield columns, hessian
        return
    tail = columns[features:]
    for start in range(0, features, group_size):
        stop = min(start + group_size, features)
        inside = ((hessian.alive >= start) & (hessian.alive < stop)) | (hessian.alive >= features)
        chosen = inside.nonzero()[:, 0]
        local = torch.where(hessian.alive[chosen] < features, hessian.alive[chosen] - start, stop - start)
        correlation = hessian.correlation[chosen][:, chosen].double()
        yield (
            torch.cat([columns[start:stop], tail]),
            DampedHessian(
                local, hessian.scale[chosen], correlation, hessian.damping, stop - start + hessian.bias, hessian.bias
            ),
        )


def _dead_first(
    weight: Tensor, hessian: DampedHessian, pattern: str | Pattern | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The dead inputs' removals, and what is left to the elimination.

    Returns:
        order: ``[rows, k]``, the dead inputs that leave, cheapest first.
        costs: their increments lambda w^2, float64.
        group: ``[alive features]``, the group of M inputs (one group without a pattern) of each alive input.
        quota: how many alive inputs leave each group.
    """
    features = hessian.size - hessian.bias
    alive = hessian.alive[: len(hessian.alive) - hessian.bias]
    parsed = parse_pattern(pattern, features) or Pattern(0, max(features, 1))
    most = parsed.size - parsed.kept
    dead = torch.ones(features, dtype=torch.bool, device=weight.device)
    dead[alive] = False
    leaving = parsed.grouped(dead).sum(1).clamp_max(most)
    square = weight[:, :features].double().square().masked_fill(~dead, float("inf"))
    chosen = parsed.flat(row_ranks(parsed.grouped(square)) < leaving[:, None])
    square = square.masked_fill(~chosen, float("inf"))
    square, order = square.sort(dim=1, stable=True)
    count = int(leaving.sum())
    group = alive // parsed.width * parsed.step + alive % parsed.step
    return order[:, :count], hessian.damping * square[:, :count], group, most - leaving


def _merging_keys(increments: Tensor, dead: Tensor, groups: int) -> Tensor:
    """What the rows' removals are merged by: the running maximum of the increments, in each row's order.

    Weights of inputs that are always zero leave before all others of their group, whatever they cost (lambda w^2).
    Where there are several groups, these compete by what has been paid so far, as in a `GroupedPath`.

    Args:
        increments: ``[out, t]``.
        dead: bool likewise, the first ones of each row.
        groups: of the layer.

    Returns:
        Non-decreasing in each row.
    """
    own = increments.masked_fill(dead, 0.0).cummax(dim=1).values
    if groups == 1 or not dead.any():
        return own
    paid = increments.masked_fill(~dead, 0.0).unflatten(0, (groups, -1)).flatten(1).cummax(dim=1).values
    after = torch.nextafter(paid[:, -1:], paid.new_full((), float("inf")))
    after = after.masked_fill(~dead.unflatten(0, (groups, -1)).flatten(1).any(1, keepdim=True), 0.0)
    after = after.repeat_interleave(len(own) // groups, dim=0)
    return torch.where(dead, paid.reshape(own.shape), torch.maximum(own, after))


def _merge(order: Tensor, increments: Tensor, keys: Tensor, features: int) -> tuple[Tensor, Tensor, Tensor]:
    """All rows' removals in one order.

    Args:
        order: ``[rows, t]``, the inputs in each row's order.
        increments: what each costs.
        keys: non-decreasing within each row (and group).
        features: inputs of the layer.

    Returns:
        rank: int32 ``[rows, features]``, >= rows * t where a weight never leaves.
        curve: float64 ``[rows * t + 1]``, the error after every count.
        sensitivities: L_q = increment / 2 of every weight when it left, infinite where it never does.
    """
    rows, count = order.shape
    sensitivities = increments.new_full((rows, features), float("inf")).scatter_(1, order.long(), increments / 2)
    sequence = keys.flatten().argsort(stable=True)
    curve = torch.cat([increments.new_zeros(1), increments.flatten()[sequence].cumsum(0)])
    weights = sequence // max(count, 1) * features + order.flatten()[sequence]
    if rows * count < rows * features:
        stays = torch.isinf(sensitivities.flatten()).nonzero()[:, 0]
        weights = torch.cat([weights, stays])
    return ranks_of_order(weights).reshape(rows, features), curve.cpu(), sensitivities


def _solve_groups(weight: Tensor, mask: Tensor, parts: list[tuple[Tensor, DampedHessian]]) -> Tensor:
    """Each group's weights from its own diagonal block of H; the bias takes over from all of them."""
    result = weight.clone()
    for columns, hessian in parts:
        change = solve_on_support(weight[:, columns], mask[:, columns], hessian) - weight[:, columns]
        result[:, columns] += change
    return result
