"""How a budget is shared out between the layers."""
