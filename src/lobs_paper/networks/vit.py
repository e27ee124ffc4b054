"""A small Vision Transformer, for MNIST."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ViT(nn.Module):
    """A Vision Transformer (Dosovitskiy et al. 2021) of torch's own encoder layers, norms first, mean over the tokens.

    Args:
        size: side of the images, a multiple of `patch`.
        patch: side of the squares that become tokens.
        channels: of the images.
        width: of a token.
        depth: encoder layers.
        heads: of each attention.
        hidden: units of each perceptron.
        classes: outputs.
    """

    def __init__(
        self,
        size: int = 28,
        patch: int = 7,
        channels: int = 1,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        hidden: int = 128,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))
