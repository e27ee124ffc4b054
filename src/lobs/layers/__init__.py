"""How a module is seen as a matrix, which layers a network has, and what must hold for them."""

from lobs.layers.matrix import register, set_weight_matrix, weight_matrix
from lobs.layers.network import prunable_layers
from lobs.layers.view import View

__all__ = ["View", "prunable_layers", "register", "set_weight_matrix", "weight_matrix"]
