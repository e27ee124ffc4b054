"""Second moments of whole data at once, in float64."""

import torch


def dense_moment(samples, bias):
    samples = samples.double()
    if bias:
        samples = torch.cat([samples, torch.ones(len(samples), 1, dtype=torch.float64)], 1)
    return samples.T @ samples / len(samples)


def assert_moments_agree(moment, expected):
    """To float32's rounding of a sum of products: an entry's terms are as large as its two diagonal entries say."""
    size = expected.diagonal().sqrt()
    assert ((moment - expected).abs() <= 1e-6 * torch.outer(size, size) + 1e-300).all()
