"""How a module is seen as a matrix, which layers a network has, and what must hold for them."""
