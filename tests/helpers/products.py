"""A layer's outputs from its matrix view alone."""

import torch

from lobs.layers.matrix import input_samples, weight_matrix


def as_product(module, inputs, chunk_bytes=2**20):
    """The layer's outputs ``[samples, out]`` from its matrix view alone."""
    matrix = weight_matrix(module)
    groups = getattr(module, "groups", 1)
    features = module.weight.shape[1:].numel()
    chunks = []
    for samples in input_samples(module, inputs, chunk_bytes):
        blocks = matrix[:, :features].unflatten(0, (groups, -1))
        outputs = samples @ blocks.mT  # [groups, samples, out / groups]
        outputs = outputs.permute(1, 0, 2).flatten(1)
        chunks.append(outputs + matrix[:, -1] if module.bias is not None else outputs)
    return torch.cat(chunks)
