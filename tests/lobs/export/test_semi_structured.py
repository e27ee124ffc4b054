"""Which layers a GPU's sparse tensor cores take, and that they compute the same."""

import pytest
import torch
from torch import nn

import lobs
from lobs.export.semi_structured import misfit


def pruned(*layers, exclude=()):
    torch.manual_seed(0)
    solver = lobs.solvers.make("magnitude", pattern="2:4")
    given = layers[0].weight.shape[1]
    shape = (8, given, 6, 6) if isinstance(layers[0], nn.Conv2d) else (8, given)
    return lobs.prune(nn.Sequential(*layers), batches=[torch.randn(shape)], method=solver, density=0.5, exclude=exclude)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_was_pruned_in_the_pattern_fits(dtype):
    model = pruned(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64)).model.to(dtype)
    assert misfit(model[0]) is misfit(model[2]) is None


@pytest.mark.parametrize("cutlass", [False, True])
def test_the_rules_are_torchs_own(cutlass, monkeypatch):
    monkeypatch.setattr(torch.sparse.SparseSemiStructuredTensor, "_FORCE_CUTLASS", cutlass)
    backend = getattr(torch.sparse, f"SparseSemiStructuredTensor{'CUTLASS' if cutlass else 'CUSPARSELT'}")

    class Anywhere(torch.Tensor):
        is_cuda = True

    for dtype in (torch.float16, torch.float32, torch.float64):
        for rows in (8, 16, 32, 48):
            for columns in (16, 32, 64, 80):
                layer = nn.Linear(columns, rows).to(dtype)
                nn.init.zeros_(layer.weight)
                try:
                    backend._validate_device_dim_dtype_shape(layer.weight.detach().as_subclass(Anywhere))
                except RuntimeError:
                    assert misfit(layer) is not None
                else:
                    assert misfit(layer) is None


def test_reasons_are_given():
    model = pruned(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 20), exclude=["2"]).model.half()
    assert misfit(model[0]) == "torch multiplies by 2:4 sparse weights in Linear layers only, this is a Conv2d"
    assert "its weight (20, 128) is not made of blocks of" in misfit(model[2])
    assert (
        misfit(nn.Linear(64, 64).half())
        == '1024 of its groups of 4 inputs keep more than 2: prune it with pattern="2:4"'
    )
    assert "of torch.float64: float16 or bfloat16 do" in misfit(nn.Linear(64, 64).double())
    with pytest.raises(ValueError, match="sparse tensor cores are a GPU's: give the network on one"):
        lobs.semi_structured(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_copy_computes_the_same_on_a_gpu():
    result = pruned(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), exclude=["4"])
    model = result.model.half().cuda()
    found = lobs.semi_structured(model)
    assert found.converted == ["0", "2"] and "blocks" in found.dense["4"]
    assert isinstance(found.model[0].weight, torch.sparse.SparseSemiStructuredTensor)
    x = torch.randn(32, 128, device="cuda", dtype=torch.half)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), model(x), rtol=1e-2, atol=1e-2)
