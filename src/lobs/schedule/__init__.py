"""How the layers are gone through: all at once, or front to back."""
