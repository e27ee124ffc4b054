"""How a module is seen as a matrix, which layers a network has, and what must hold for them."""

from lobs.layers.matrix import set_weight_matrix, weight_matrix
from lobs.layers.network import prunable_layers

__all__ = ["prunable_layers", "set_weight_matrix", "weight_matrix"]
