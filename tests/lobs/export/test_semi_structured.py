"""Which layers a GPU's sparse tensor cores take, and that they compute the same."""

import pytest
import torch
from torch import nn

import lobs
from lobs.export.kernels import SEMI_STRUCTURED, alternatives
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


@pytest.fixture
def as_if_on_a_gpu(monkeypatch):
    """What is in half precision says that it is on a GPU; what torch would make sparse is negated."""

    def negated(weight):
        assert weight.is_contiguous() and not weight.requires_grad
        return -weight

    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.dtype is torch.half))
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", negated)


def halved(layer):
    """Every other weight of a layer taken away."""
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    return layer


def test_the_layers_that_fit_are_converted_and_the_others_say_why(as_if_on_a_gpu):
    first, twin = halved(nn.Linear(64, 64)), nn.Linear(64, 64)
    twin.weight = first.weight
    model = nn.Sequential(first, twin, nn.Linear(64, 64), halved(nn.Linear(64, 64)), nn.Conv1d(64, 64, 1))
    model.half()
    twin.weight = first.weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = lobs.semi_structured(model)
    assert found.converted == ["0", "3"]
    assert list(found.dense) == ["2", "4"]
    assert found.dense["2"].endswith('keep more than 2: prune it with pattern="2:4"')
    assert found.dense["4"].endswith("this is a Conv1d")
    assert found.model[0].weight is found.model[1].weight
    for name in ("0", "3"):
        converted = found.model.get_submodule(name).weight
        assert torch.equal(converted, -before[f"{name}.weight"]) and not converted.requires_grad
    for name in ("2", "4"):
        assert torch.equal(found.model.get_submodule(name).weight, before[f"{name}.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parts_of_a_weight_stay_dense(as_if_on_a_gpu):
    model = nn.MultiheadAttention(64, 2)
    halved(model.out_proj)
    with torch.no_grad():
        model.in_proj_weight[:, ::2] = 0
    found = lobs.semi_structured(model.half())
    assert found.converted == ["out_proj"]
    assert found.dense == dict.fromkeys(["q_proj", "k_proj", "v_proj"], "its weight is a part of another module's")


def test_a_network_that_lies_on_the_cpu_in_part_is_refused(as_if_on_a_gpu):
    model = nn.Sequential(halved(nn.Linear(64, 64)).half(), halved(nn.Linear(64, 64)))
    with pytest.raises(ValueError, match="sparse tensor cores are a GPU's"):
        lobs.semi_structured(model)


def test_the_kernel_for_sparse_tensor_cores_is_there_where_the_layer_fits_alone(as_if_on_a_gpu):
    model = nn.Sequential(halved(nn.Linear(64, 64)), nn.Linear(64, 64), halved(nn.Linear(64, 64)))
    assert SEMI_STRUCTURED not in alternatives(model[2])
    model.half()
    assert SEMI_STRUCTURED not in alternatives(model[1])
    found = alternatives(model[0])[SEMI_STRUCTURED]
    assert found is not model[0] and torch.equal(found.weight, -model[0].weight)
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert all(parameter.requires_grad for parameter in model[0].parameters())


def test_a_layer_without_weights_does_not_fit():
    layer = nn.Linear(64, 64).half()
    layer.weight = nn.Parameter(layer.weight[:, :0].detach())
    assert "(64, 0) is not made of blocks" in misfit(layer)
    assert misfit(halved(nn.Linear(64, 64)).half()) is None
