"""The README's Python runs as it stands, on a small network of somebody else's."""

import re
from pathlib import Path

import torch
from torch import nn

README = Path(__file__).parents[1] / "README.md"


def test_every_python_block_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
    batches = [(torch.randn(30, 12), torch.zeros(30)) for _ in range(3)]
    names = {"model": model, "batches": batches}  # as a reader would: one block after the other
    for block in blocks:
        exec(block, names)
        result = names["result"]
        assert result.density <= 0.07
        assert set(result.masks) == {"0", "2"}
        assert not torch.equal(result.model[0].weight, model[0].weight)


def test_every_relative_link_resolves():
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / link).exists(), link
