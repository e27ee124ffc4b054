"""The paper's networks, and weights that were trained elsewhere."""
