"""Net-Trim (Aghasi, Abdi, Nguyen & Romberg 2017): a layer's weights as the sparsest that keep its activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from typing import ClassVar

import torch
from torch import Tensor

from lobs.base.arguments import check_count, check_flag, check_number
from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.curve import SOLVED_EVERYWHERE
from lobs.solvers.hessian import DAMPING, damped_groups
from lobs.solvers.least_squares import solve_on_support
from lobs.solvers.path import PruningPath, SolvedPath, with_bias_column

# The curve's epsilons: this many, the first one this share of the last, at which no weight is left. Evenly spaced in
# log(epsilon / (last - epsilon)), hence in log epsilon but for the last few: there the density changes fastest.
KNOTS, LOWEST, CLOSEST = 13, 1e-3, 0.95
# A solution with up to this many times the weights asked for will do: its smallest ones are removed.
SLACK = 1.02


@dataclass(frozen=True)
class NetTrim(Solver):
    """Solve one convex program per layer.

    With X the sampled inputs as columns, Y the pre-activations wanted (``W^T X``) and W the trained weight::

        minimise ||U||_1   subject to   ||(U^T X - Y)[Y > 0]||_F <= epsilon
                                        (U^T X)[Y <= 0] <= max(0, W^T X)[Y <= 0]

    The second bound is 0 in the parallel scheme, where Y = W^T X. Statistics with a ``target_sample`` make it the
    cascade (their Cascade Net-Trim): X then comes from the network pruned so far and Y from the dense one, epsilon is
    at least what W reaches, and the maximum keeps W itself feasible. The network's last layer has no ReLU: all its
    outputs are matched and there is no second constraint.

    Solved by ADMM with one factorisation of X X^T + I, on a grid of epsilons of which each starts where its neighbour
    ended. A count is looked for between two of them. The bias is not penalised. The program needs raw activations:
    `collect_statistics` with ``keep_samples``. Weights that are zero already stay so throughout. A grouped convolution
    is one program, with one epsilon for all of its groups.

    Args:
        iterations: of ADMM for one epsilon, at most.
        tolerance: relative primal and dual residual at which it stops.
        bisections: epsilons tried for one count, at most.
        resolve: replace the weights by least squares on the support found (Psi of all samples).
    """

    line: ClassVar[str] = "the sparsest weights that keep a layer's activations, a convex program (Aghasi et al. 2017)"
    needs: ClassVar[tuple[str, ...]] = ("inputs_sample",)
    by_group: ClassVar[bool] = False
    iterations: int = 50
    tolerance: float = 1e-3
    bisections: int = 6
    resolve: bool = False

    def __post_init__(self) -> None:
        check_count("iterations", self.iterations, 1)
        check_count("bisections", self.bisections, 0)
        check_flag("resolve", self.resolve)
        check_number("tolerance", self.tolerance, "a relative residual")
        if self.tolerance is None or not 0 <= self.tolerance < float("inf"):
            raise ValueError(f"tolerance is a relative residual, 0 or more; got {self.tolerance}")

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """A path that searches epsilon for each count.

        Returns:
            The path; its `solved_counts` are those of the grid's solutions, unless the layer is small.

        Raises:
            ValueError: the statistics hold no sample of the inputs.
        """
        samples = statistics.inputs_sample
        if samples is None:
            raise ValueError(
                "net_trim needs raw inputs: collect_statistics(model, batches, keep_samples=2000), "
                "or keep_samples=2000 for prune(..., sequential=True)"
            )
        features, total = statistics.features, len(weight) * statistics.features
        grid = _Grid(weight, samples, statistics, self)
        hessians = damped_groups(statistics, DAMPING) if self.resolve else []
        zeros = (weight[:, :features] == 0).flatten()

        def solve(count: int) -> tuple[Tensor, Tensor]:
            sparse = grid.weight(total - count)
            scores = sparse[:, :features].abs().flatten().masked_fill_(zeros, -1.0)
            # Among the weights that are zero already the trained ones decide.
            order = weight[:, :features].abs().flatten().argsort(stable=True)
            order = order[scores[order].argsort(stable=True)]
            kept = torch.ones_like(scores, dtype=torch.bool)
            kept[order[:count]] = False
            mask = with_bias_column(kept.reshape(len(weight), features), statistics.bias)
            if hessians:
                parts = zip(weight.chunk(statistics.groups), mask.chunk(statistics.groups), hessians, strict=True)
                return torch.cat([solve_on_support(*part) for part in parts]), mask
            return sparse.masked_fill(~mask, 0.0), mask

        damping = sum(hessian.damping for hessian in hessians) / statistics.groups
        cheap = None if total <= SOLVED_EVERYWHERE else grid.counts
        return SolvedPath(weight, statistics, total, solve, damping, cheap)


class Program:
    """One layer's convex program, scaled so that X X^T has a mean diagonal of 1.

    All matrices may be batches ``[groups, ...]``: a block-diagonal layer's blocks.

    Args:
        weight: U_0^T, ``[out, d]``, which meets the constraints at every epsilon that is accepted; where it is zero,
            all solutions are.
        samples: X^T, ``[n, d]``, ones last where there is a bias.
        bias: whether there is.
        relu: whether a ReLU follows.
        targets: Y^T, ``[n, out]``; None: what the weight gives on the samples.
    """

    def __init__(self, weight: Tensor, samples: Tensor, bias: bool, relu: bool, targets: Tensor | None = None) -> None:
        scale = samples.double().square().sum(-2).mean().sqrt().clamp_min(1e-300)
        self.samples = (samples.double() / scale).to(weight.dtype)
        self.bias, self.weight = bias, weight
        self.zeros = weight == 0 if (weight == 0).any() else None
        self.reached = self.samples @ weight.mT
        self.outputs = self.reached if targets is None else (targets.double() / scale).to(weight.dtype)
        self.active = self.outputs > 0 if relu else torch.ones_like(self.outputs, dtype=torch.bool)
        # What an inactive output may be at most; nothing bounds an active one but epsilon.
        self.ceiling = self.reached.clamp_min(0.0).masked_fill(self.active, float("inf"))
        self.norm = float((self.outputs * self.active).norm())
        gram = (self.samples.mT @ self.samples).double()
        gram.diagonal(dim1=-2, dim2=-1).add_(1.0)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram)).to(weight.dtype)

    @cached_property
    def least(self) -> float:
        """The smallest epsilon accepted, relative to ||Y[active]||_F: what the weight itself reaches."""
        return self.mismatch(self.reached)

    def mismatch(self, outputs: Tensor) -> float:
        """||(outputs - Y)[active]||_F relative to ||Y[active]||_F."""
        return float(((outputs - self.outputs) * self.active).norm()) / max(self.norm, 1e-30)

    def emptied(self) -> tuple[Tensor, float]:
        """The best weights without any input but the bias, and the relative epsilon from which on they are optimal.

        A unit's bias is the mean of its active outputs, as far as its inactive ones allow.

        Returns:
            weight: ``[out, d]``.
            epsilon: of these weights.
        """
        weight = torch.zeros_like(self.weight)
        if self.bias:
            mean = (self.outputs * self.active).sum(-2) / self.active.sum(-2).clamp_min(1)
            one = float(self.samples[..., -1].flatten()[0])
            weight[..., -1] = torch.minimum(mean, self.ceiling.amin(-2)) / one
        return weight, self.mismatch(self.samples @ weight.mT)

    def project(self, outputs: Tensor, epsilon: float) -> Tensor:
        """The nearest outputs that meet both constraints."""
        difference = (outputs - self.outputs).mul_(self.active)
        norm = float(difference.norm())
        shrunk = difference.mul_(min(1.0, epsilon / norm if norm else 1.0)).add_(self.outputs)
        return torch.where(self.active, shrunk, torch.minimum(outputs, self.ceiling))

    def solve(self, epsilon: float, iterations: int, tolerance: float, state: State | None = None) -> State:
        """ADMM on A = U, Z = X^T U with scaled duals; A carries the l1 norm, Z the constraints.

        Args:
            epsilon: relative to ||Y[active]||_F; one below `least` is raised to it.
            iterations: at most.
            tolerance: relative residuals at which it stops.
            state: of a run with another epsilon, to start from.

        Returns:
            The state reached; ``sparse`` is the solution.
        """
        x, bound = self.samples, max(epsilon, self.least) * self.norm
        state = state or State(self.weight.clone(), self.reached.clone())
        rho = state.rho
        sparse, outputs, dual_sparse, dual_outputs = state.sparse, state.outputs, state.dual_sparse, state.dual_outputs
        for step in range(1, iterations + 1):
            dense = ((sparse - dual_sparse) + (outputs - dual_outputs).mT @ x) @ self.inverse
            produced = x @ dense.mT
            # Over-relaxation by 1.6 (Boyd et al. 2011, section 3.4.3).
            relaxed = torch.lerp(sparse, dense, 1.6).add_(dual_sparse)
            relaxed_outputs = torch.lerp(outputs, produced, 1.6).add_(dual_outputs)
            before, before_outputs = sparse, outputs
            sparse = self._shrink(relaxed, 1 / rho)
            outputs = self.project(relaxed_outputs, bound)
            dual_sparse = relaxed.sub_(sparse)
            dual_outputs = relaxed_outputs.sub_(outputs)
            if step % 10:
                continue
            primal = float((dense - sparse).norm() + (produced - outputs).norm())
            primal /= max(1e-30, float(sparse.norm() + outputs.norm()))
            dual = float((sparse - before).norm() + (outputs - before_outputs).norm())
            dual /= max(1e-30, float(dual_sparse.norm() + dual_outputs.norm()))
            if max(primal, dual) < tolerance:
                break
            # Residual balancing; the inverse does not depend on rho, only the scaled duals do.
            if (primal > 10 * dual or dual > 10 * primal) and step < 0.7 * iterations:
                change = 2.0 if primal > dual else 0.5
                rho, dual_sparse, dual_outputs = rho * change, dual_sparse / change, dual_outputs / change
        return State(sparse, outputs, dual_sparse, dual_outputs, rho)

    def _shrink(self, values: Tensor, threshold: float) -> Tensor:
        shrunk = torch.nn.functional.softshrink(values, threshold)
        if self.zeros is not None:
            shrunk.masked_fill_(self.zeros, 0.0)
        if self.bias:
            shrunk[..., -1] = values[..., -1]
        return shrunk


class State:
    """Where ADMM stands: A, Z, their scaled duals, the penalty rho."""

    def __init__(
        self,
        sparse: Tensor,
        outputs: Tensor,
        dual_sparse: Tensor | None = None,
        dual_outputs: Tensor | None = None,
        rho: float | None = None,
    ) -> None:
        self.sparse = sparse
        self.outputs = outputs
        self.dual_sparse = torch.zeros_like(sparse) if dual_sparse is None else dual_sparse
        self.dual_outputs = torch.zeros_like(outputs) if dual_outputs is None else dual_outputs
        # Thresholds start at the size of the weights.
        self.rho = rho or 1 / max(1e-30, float(sparse.abs().mean()))


@dataclass(frozen=True, eq=False)  # looked up in a list: tensors have no truth value
class _Solution:
    epsilon: float
    nonzeros: int
    sparse: Tensor
    state: State | None


class _Grid:
    """One layer's solutions over a grid of epsilons, and the search between two of them.

    What a count gets depends on the grid and the count alone, not on the counts asked for before. Inputs that are zero
    in all samples are left out: their weights are zero in every solution.
    """

    def __init__(self, weight: Tensor, samples: Tensor, statistics: LayerStatistics, options: NetTrim) -> None:
        self.options = options
        self.bias = statistics.bias
        targets, groups = statistics.target_sample, statistics.groups
        if groups > 1:
            weight = weight.unflatten(0, (groups, -1))
            targets = None if targets is None else targets.unflatten(1, (groups, -1)).movedim(1, 0)
        self.shape = weight.shape
        used = samples.ne(0).flatten(0, -2).any(0)
        used[-1:] = used[-1:] | ~used.any()
        self.used = used
        self.program = Program(weight[..., used], samples[..., used], self.bias, not statistics.last, targets)

    @cached_property
    def solutions(self) -> list[_Solution]:
        """From the smallest epsilon, which starts at the trained weight, to the one at which no weight is left."""
        program = self.program
        empty, last = program.emptied()
        first, closest = log(LOWEST / (1 - LOWEST)), log(CLOSEST / (1 - CLOSEST))
        epsilons = []
        for knot in range(KNOTS):
            share = 1 / (1 + exp(-first - (closest - first) * knot / (KNOTS - 1)))
            # Counted from the least epsilon, squares as in least squares.
            epsilons.append((program.least**2 + share**2 * max(0.0, last**2 - program.least**2)) ** 0.5)
        # From the middle, where the trained weight is a good start, outwards.
        middle = self._solve(epsilons[KNOTS // 2], None)
        above, below = [middle], [middle]
        for epsilon in epsilons[KNOTS // 2 + 1 :]:
            above.append(self._solve(epsilon, above[-1].state))
        for epsilon in reversed(epsilons[: KNOTS // 2]):
            below.append(self._solve(epsilon, below[-1].state))
        solutions = [*reversed(below), *above[1:]]
        return [*solutions, _Solution(max(last, program.least), 0, empty, None)]

    def counts(self) -> list[int]:
        """0 and the counts of removals that the grid's solutions have themselves, increasing."""
        total = self.shape[:-1].numel() * (self.shape[-1] - self.bias)
        removed = [total - found.nonzeros for found in self.solutions]
        return sorted({0, *removed})

    def weight(self, kept: int) -> Tensor:
        """The solution with the fewest weights that are not zero, but at least ``kept``.

        More than the smallest epsilon leaves is not to be had: its solution then comes.

        Returns:
            ``[out, d]``.
        """
        full = self.program.weight.new_zeros(self.shape)
        full[..., self.used] = self._search(kept).sparse
        return full.reshape(-1, full.shape[-1])

    def _search(self, kept: int) -> _Solution:
        enough = [found for found in self.solutions if found.nonzeros >= kept]
        if not enough:
            return self.solutions[0]
        best = min(enough, key=lambda found: found.nonzeros)
        low = enough[-1]
        if best.nonzeros <= kept * SLACK or low is self.solutions[-1]:
            return best
        high = self.solutions[self.solutions.index(low) + 1]
        goal = kept * (1 + SLACK) / 2
        for _ in range(self.options.bisections):
            share = min(max((low.nonzeros - goal) / (low.nonzeros - high.nonzeros), 0.1), 0.9)
            epsilon = max(low.epsilon, 1e-12) ** (1 - share) * max(high.epsilon, 1e-12) ** share
            found = self._solve(epsilon, low.state if share < 0.5 or high.state is None else high.state)
            if found.nonzeros < kept:
                high = found
                continue
            low = found
            best = min(best, found, key=lambda one: one.nonzeros)
            if best.nonzeros <= kept * SLACK + 1:
                break
        return best

    def _solve(self, epsilon: float, start: State | None) -> _Solution:
        state = self.program.solve(epsilon, self.options.iterations, self.options.tolerance, start)
        weights = state.sparse[..., : state.sparse.shape[-1] - self.bias]
        return _Solution(epsilon, int(weights.count_nonzero()), state.sparse, state)
