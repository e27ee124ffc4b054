"""A pruned network is an ordinary network: saved, loaded, copied, compiled, exported, wrapped and trained on."""

import copy
import io
import pickle

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune as torch_prune

import lobs
from lobs.layers import prunable_layers

torch.manual_seed(0)
X = torch.randn(48, 2, 5, 5)


def network():
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(2, 4, 3), *middle, nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture(params=[False, True], ids=["", "masks kept"])
def result(request):
    found = lobs.prune(network(), batches=list(X.split(16)), method="exact_obs", density=0.3, correct="both")
    handle = lobs.keep_masks(found.model, found) if request.param else None
    yield found
    if handle is not None:
        handle.remove()


@pytest.fixture
def processes(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def same(model, result):
    with torch.no_grad():
        torch.testing.assert_close(model(X), result.model(X))
    for name, module in prunable_layers(model).items():
        assert torch.equal(module.weight != 0, result.masks[name])


def train(model, x=X):
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_state_dict(result):
    fresh = network()
    fresh.load_state_dict(result.model.state_dict())
    same(fresh, result)


def test_the_whole_module_in_a_file(result):
    file = io.BytesIO()
    torch.save(result.model, file)
    file.seek(0)
    same(torch.load(file, weights_only=False), result)


def test_copies_and_pickles_of_the_result(result):
    for copied in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        same(copied.model, result)
        assert repr(copied) == repr(result) and copied.layers == result.layers
        train(copied.model)  # a copy's weights are its own, and its masks are nobody's yet
        assert any((m.weight[~result.masks[n]] != 0).any() for n, m in prunable_layers(copied.model).items())
    same(result.model, result)


def test_export(result):
    exported = torch.export.export(result.model, (X,)).module()
    torch.testing.assert_close(exported(X), result.model(X))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(result, backend):
    torch.testing.assert_close(torch.compile(result.model, backend=backend, fullgraph=True)(X), result.model(X))


def test_training_a_compiled_network_keeps_its_zeros():
    found = lobs.prune(network(), batches=[X], method="magnitude", density=0.3)
    with lobs.keep_masks(found.model, found):
        train(torch.compile(found.model, backend="aot_eager"))
    same(found.model, found)


def test_torchs_own_masks(result):
    for name, module in prunable_layers(result.model).items():
        torch_prune.custom_from_mask(module, "weight", result.masks[name])
    with pytest.raises(ValueError, match=r"call torch.nn.utils.prune.remove\(module, 'weight'\) first"):
        lobs.prune(result.model, batches=[X], method="magnitude", density=0.2)
    for module in prunable_layers(result.model).values():
        torch_prune.remove(module, "weight")
    same(result.model, result)
    further = lobs.prune(result.model, batches=[X], method="magnitude", density=0.2)
    assert all(not (mask & ~result.masks[name]).any() for name, mask in further.masks.items())


@pytest.mark.usefixtures("processes")
def test_data_parallel_training():
    wrapped = DistributedDataParallel(network())
    message = r"the network is wrapped for several devices \(DistributedDataParallel\): .* \(DDP holds it as .module"
    for call in (lambda: lobs.prune(wrapped, batches=[X], density=0.3), lambda: lobs.keep_masks(wrapped)):
        with pytest.raises(ValueError, match=message):
            call()
    found = lobs.prune(wrapped.module, batches=[X], method="magnitude", density=0.3)
    wrapped = DistributedDataParallel(found.model)
    with lobs.keep_masks(wrapped.module, found):
        train(wrapped)
    same(wrapped.module, found)


@pytest.mark.usefixtures("processes")
def test_sharded_training():
    found = lobs.prune(network(), batches=[X], method="magnitude", density=0.3)
    with lobs.keep_masks(found.model, found):
        sharded = fully_shard(found.model, mesh=init_device_mesh("cpu", (1,)))
        train(sharded)
    for name, mask in found.masks.items():
        assert torch.equal(sharded.get_submodule(name).weight.full_tensor() != 0, mask)
    with pytest.raises(ValueError, match=r"for several devices \(FSDPModule\): .* FSDP has to come after pruning"):
        lobs.prune(sharded, batches=[X], density=0.2)
