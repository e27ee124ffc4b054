"""Net-Trim (Aghasi, Abdi, Nguyen & Romberg 2017): a layer's weights as the sparsest that keep its activations."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor

from lobs.solvers.base import Solver
from lobs.solvers.hessian import DAMPING, damp
from lobs.solvers.path import PruningPath, SolvedPath, with_bias_column
from lobs.solvers.support import solve_on_support
from lobs.statistics import LayerStatistics

# Range of epsilon relative to ||Y[active]||_F in which a density is searched.
LOWEST, HIGHEST = 1e-4, 1.0


@dataclass(frozen=True)
class NetTrim(Solver):
    """Solve one convex program per layer.

    With X the sampled inputs as columns and Y = relu(U_0^T X)::

        minimise ||U||_1   subject to   ||(U^T X - Y)[Y > 0]||_F <= epsilon,   (U^T X)[Y <= 0] <= 0

    The network's last layer has no ReLU: all its outputs are matched and there is no second constraint. Solved by ADMM
    with one Cholesky factor of X X^T + I; epsilon is bisected for the density asked for. The bias is not penalised. The
    program needs raw activations: `collect_statistics` with ``keep_samples``.

    Args:
        iterations: of ADMM for one epsilon, at most.
        tolerance: relative primal and dual residual at which it stops.
        bisections: of epsilon for one density.
        resolve: replace the weights by least squares on the support found (Psi of all samples).
    """

    iterations: int = 400
    tolerance: float = 1e-3
    bisections: int = 10
    resolve: bool = False

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """A path that searches epsilon for each count.

        Returns:
            The path.

        Raises:
            ValueError: the statistics hold no sample of the inputs.
        """
        samples = statistics.inputs_sample
        if samples is None:
            raise ValueError("net_trim needs raw inputs: collect_statistics(model, batches, keep_samples=2000)")
        program = Program(weight, samples, statistics.bias, relu=not statistics.last)
        search = _Search(program, self, statistics.features)
        hessian = damp(statistics, DAMPING) if self.resolve else None

        def solve(count: int) -> tuple[Tensor, Tensor]:
            sparse = search.at_least(program.out * statistics.features - count)
            scores = sparse[:, : statistics.features].abs()
            kept = torch.ones(scores.numel(), dtype=torch.bool, device=weight.device)
            kept[scores.flatten().argsort(stable=True)[:count]] = False
            mask = with_bias_column(kept.reshape(scores.shape), statistics.bias)
            if hessian is not None:
                return solve_on_support(weight, mask, hessian), mask
            return sparse.to(weight.dtype).masked_fill(~mask, 0.0), mask

        damping = 0.0 if hessian is None else hessian.damping
        return SolvedPath(weight, statistics, program.out * statistics.features, solve, damping)


class Program:
    """One layer's convex program, scaled so that X X^T has a mean diagonal of 1.

    Args:
        weight: U_0^T, ``[out, d]``.
        samples: X^T, ``[n, d]``, ones last where there is a bias.
        bias: whether there is.
        relu: whether a ReLU follows.
    """

    def __init__(self, weight: Tensor, samples: Tensor, bias: bool, relu: bool) -> None:
        scale = samples.double().square().sum(0).mean().sqrt().clamp_min(1e-300)
        self.samples = (samples.double() / scale).to(weight.dtype)
        self.out, self.bias = len(weight), bias
        self.weight = weight
        self.outputs = self.samples @ weight.T
        self.active = self.outputs > 0 if relu else torch.ones_like(self.outputs, dtype=torch.bool)
        self.norm = float((self.outputs * self.active).norm())
        gram = (self.samples.T @ self.samples).double()
        gram.diagonal().add_(1.0)
        self.factor = torch.linalg.cholesky(gram).to(weight.dtype)

    def project(self, outputs: Tensor, epsilon: float) -> Tensor:
        """The nearest outputs that meet both constraints."""
        difference = (outputs - self.outputs) * self.active
        norm = float(difference.norm())
        shrunk = self.outputs + difference * min(1.0, epsilon / norm if norm else 1.0)
        return torch.where(self.active, shrunk, outputs.clamp_max(0.0))

    def solve(self, epsilon: float, iterations: int, tolerance: float, state: State | None = None) -> State:
        """ADMM on A = U, Z = X^T U with scaled duals; A carries the l1 norm, Z the constraints.

        Args:
            epsilon: relative to ||Y[active]||_F.
            iterations: at most.
            tolerance: relative residuals at which it stops.
            state: of a run with another epsilon, to start from.

        Returns:
            The state reached; ``sparse`` is the solution.
        """
        x, bound = self.samples, epsilon * self.norm
        state = state or State(self.weight.clone(), self.outputs.clone())
        rho = state.rho
        sparse, outputs, dual_sparse, dual_outputs = state.sparse, state.outputs, state.dual_sparse, state.dual_outputs
        for step in range(1, iterations + 1):
            right = (sparse - dual_sparse) + (outputs - dual_outputs).T @ x
            dense = torch.cholesky_solve(right.T, self.factor).T
            produced = x @ dense.T
            # Over-relaxation by 1.6 (Boyd et al. 2011, section 3.4.3).
            relaxed, relaxed_outputs = 1.6 * dense - 0.6 * sparse, 1.6 * produced - 0.6 * outputs
            before, before_outputs = sparse, outputs
            sparse = self._shrink(relaxed + dual_sparse, 1 / rho)
            outputs = self.project(relaxed_outputs + dual_outputs, bound)
            dual_sparse = dual_sparse + relaxed - sparse
            dual_outputs = dual_outputs + relaxed_outputs - outputs
            if step % 10:
                continue
            primal = float((dense - sparse).norm() + (produced - outputs).norm())
            primal /= max(1e-30, float(sparse.norm() + outputs.norm()))
            dual = float((sparse - before).norm() + (outputs - before_outputs).norm())
            dual /= max(1e-30, float(dual_sparse.norm() + dual_outputs.norm()))
            if max(primal, dual) < tolerance:
                break
            # Residual balancing; the factor does not depend on rho, only the scaled duals do.
            if (primal > 10 * dual or dual > 10 * primal) and step < 0.7 * iterations:
                change = 2.0 if primal > dual else 0.5
                rho, dual_sparse, dual_outputs = rho * change, dual_sparse / change, dual_outputs / change
        return State(sparse, outputs, dual_sparse, dual_outputs, rho)

    def _shrink(self, values: Tensor, threshold: float) -> Tensor:
        shrunk = values.sign() * (values.abs() - threshold).clamp_min(0.0)
        if self.bias:
            shrunk[:, -1] = values[:, -1]
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


class _Search:
    """Bisection over log epsilon, remembering every solution for the counts asked for later."""

    def __init__(self, program: Program, options: NetTrim, features: int) -> None:
        self.program = program
        self.options = options
        self.features = features
        self.solved: dict[float, tuple[int, State]] = {}

    def at_least(self, kept: int) -> Tensor:
        """The solution with the largest epsilon found that has at least ``kept`` weights that are not zero."""
        low, high = log2(LOWEST), log2(HIGHEST)
        best = self.program.weight
        for _ in range(self.options.bisections):
            middle = (low + high) / 2
            count, state = self._run(2**middle)
            if count >= kept:
                low, best = middle, state.sparse
                if count <= kept * 1.01 + 1:
                    break
            else:
                high = middle
        return best

    def _run(self, epsilon: float) -> tuple[int, State]:
        if epsilon not in self.solved:
            nearest = min(self.solved, key=lambda other: abs(log2(other / epsilon)), default=None)
            start = self.solved[nearest][1] if nearest is not None else None
            state = self.program.solve(epsilon, self.options.iterations, self.options.tolerance, start)
            count = int((state.sparse[:, : self.features] != 0).sum())
            self.solved[epsilon] = (count, state)
        return self.solved[epsilon]
