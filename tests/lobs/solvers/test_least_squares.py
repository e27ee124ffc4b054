"""The best weights on a mask against lstsq on the samples."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.oracles import constrained_least_squares
from helpers.solver_layers import layer
from lobs.solvers.hessian import damp
from lobs.solvers.least_squares import solve_on_support


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), bias=st.booleans(), density=st.floats(0, 1), damping=st.sampled_from([1e-6, 1e-2]))
def test_resolve_is_least_squares_on_the_mask(seed, bias, density, damping):
    weight, inputs, statistics = layer(seed, bias=bias)
    kept = torch.rand(weight.shape) < density
    if bias:
        kept[:, -1] = True
    hessian = damp(statistics, damping)
    solved = solve_on_support(weight, kept, hessian)
    expected = constrained_least_squares(weight, inputs, kept, hessian.damping)
    torch.testing.assert_close(solved, expected, rtol=1e-6, atol=1e-8)
