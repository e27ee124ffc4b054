"""The damped second moment against autograd, the paper's recursion and plain inverses."""

import pytest
import torch

from helpers.solver_layers import layer
from lobs.solvers import make
from lobs.solvers.hessian import damp, recursive_inverse


def test_figure_1_the_hessian_has_identical_blocks():
    """The Hessian of E in vec(W) is block diagonal with one block 2 Psi per output unit."""
    weight, inputs, statistics = layer(out=3, features=4)

    def error(theta):
        return ((inputs @ (theta.reshape(weight.shape) - weight).T).square().sum()) / len(inputs)

    hessian = torch.autograd.functional.hessian(error, weight.flatten().clone())
    expected = torch.block_diag(*[2 * statistics.second_moment] * 3)
    torch.testing.assert_close(hessian, expected)


@pytest.mark.parametrize("alpha", [1e4, 1e8])
def test_the_papers_recursion_is_the_damped_inverse(alpha):
    _, inputs, statistics = layer(count=4)  # fewer samples than inputs: singular without damping
    hessian = damp(statistics, alpha=alpha)
    inverse = hessian.inverse / torch.outer(hessian.scale, hessian.scale)
    torch.testing.assert_close(recursive_inverse(inputs, alpha), inverse, rtol=1e-4, atol=1e-4 * alpha)


def test_wrong_damping_is_named():
    weight, _, statistics = layer()
    with pytest.raises(ValueError, match=r"damping must be >= 0.*got -1"):
        make("lobs", damping=-1)(weight, statistics)
    with pytest.raises(ValueError, match=r"alpha must be > 0.*got 0"):
        make("lobs", alpha=0)(weight, statistics)
