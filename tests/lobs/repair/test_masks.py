"""Removed weights stay zero under every optimizer, after every move, and only as long as that is wanted."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import l1_unstructured

import lobs
from lobs.repair.masks import _places

torch.manual_seed(0)
X, Y = torch.randn(64, 1, 6, 6), torch.randint(4, (64,))
SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW
OPTIMIZERS = {
    "momentum": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "foreach": lambda p: ADAMW(p, 0.01, weight_decay=0.1, foreach=True),
    "fused": lambda p: ADAMW(p, 0.01, weight_decay=0.1, fused=True),
    "groups": lambda p: SGD([{"params": [w]} for w in p], 0.1, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.5, max_iter=5, line_search_fn="strong_wolfe"),
}


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


def some_masks(model):
    generator = torch.Generator().manual_seed(2)
    layers = lobs.layers.prunable_layers(model)
    return {n: torch.rand(m.weight.shape, generator=generator) < 0.3 for n, m in layers.items() if n != "5"}


def zeroed(model):
    masks = some_masks(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight.mul_(mask)
    return masks


def alive(model, masks):
    return sum(int((model.get_submodule(name).weight[~mask] != 0).sum()) for name, mask in masks.items())


def step(model, optimizer, x=X, seen=None):
    def closure():
        if seen is not None:
            seen.append(alive(model, seen[0]))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).float(), Y)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_zeros_last_through_every_optimizer(make, before):
    model = network()
    optimizer = make(list(model.parameters()))
    for _ in range(before):  # momentum gathers for weights that are removed later
        step(model, optimizer)
    masks = zeroed(model)
    start = copy.deepcopy(model)
    seen = [masks]
    with lobs.keep_masks(model, masks):
        for _ in range(4):
            step(model, optimizer, seen=None if before else seen)
            assert not alive(model, masks)
    assert not any(seen[1:])  # within the steps of LBFGS as well
    kept = masks["3"]
    assert (model[3].weight != start[3].weight)[kept].any()
    assert not torch.equal(model[5].weight, start[5].weight)


def test_it_is_the_training_of_the_masked_network():
    model, plain = network(), network()
    masks = zeroed(model)
    zeroed(plain)
    lobs.keep_masks(model)  # the zeros as they are
    optimizers = [SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.01) for m in (model, plain)]
    for _ in range(3):
        step(model, optimizers[0])
        optimizers[1].zero_grad()
        nn.functional.cross_entropy(plain(X), Y).backward()
        for name, mask in masks.items():
            plain.get_submodule(name).weight.grad.mul_(mask)
        optimizers[1].step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_after_remove_and_after_the_network_nothing_is_left():
    model = network()
    masks = zeroed(model)
    handle = lobs.keep_masks(model, masks)
    handle.remove()
    handle.remove()
    assert handle._handle is None
    step(model, SGD(model.parameters(), 0.1))
    assert alive(model, masks)
    other = network()
    zeroed(other)
    handle = lobs.keep_masks(other)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None
    step(model, SGD(model.parameters(), 0.1))
    assert not handle._places
    handle.remove()


def test_moved_cast_loaded_and_copied():
    model, dense = network(), network()
    masks = zeroed(model)
    handle = lobs.keep_masks(model, masks)
    for assign in (False, True):
        model.load_state_dict(copy.deepcopy(dense.state_dict()), assign=assign)
        handle.apply()
        assert not alive(model, masks)
        model.requires_grad_(True)
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
        step(model, optimizer)
        assert not alive(model, masks) and not model[3].weight.grad[~masks["3"]].any()
    model.to(torch.bfloat16)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    step(model, optimizer, X.bfloat16())
    assert not alive(model, masks) and not model[3].weight.grad[~masks["3"]].any()
    average = torch.optim.swa_utils.AveragedModel(model)
    step(model, optimizer, X.bfloat16())
    average.update_parameters(model)
    assert not alive(average.module, masks)


def test_a_gradient_scaler_that_overflows():
    model = network()
    masks = zeroed(model)
    lobs.keep_masks(model, masks)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    for _ in range(6):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(X), Y)).backward()
        scaler.step(optimizer)
        scaler.update(None if scaler.get_scale() < 1e30 else 1.0)
    assert not alive(model, masks) and model[3].weight.isfinite().all()


def test_tied_layers_and_weights_that_are_part_of_a_parameter():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    with torch.no_grad():
        model[0].weight[::2] = 0
    lobs.keep_masks(model)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
    assert not model[2].weight[::2].any() and model[2].weight[1::2].all()
    attention = nn.MultiheadAttention(4, 2)
    part = nn.Linear(4, 4)
    part.weight = nn.Parameter(attention.in_proj_weight.detach()[4:8])
    mask = torch.rand(4, 4) < 0.5
    (place,) = _places(attention, {"k": part}, {"k": mask})
    assert place.key == "in_proj_weight"
    assert torch.equal(~place.removed[4:8], mask) and not place.removed[:4].any() and not place.removed[8:].any()


def test_a_pruning_result_is_taken_and_what_it_removed_is_zeroed_with_a_warning():
    model = network()
    result = lobs.prune(model, batches=[X], method="magnitude", density=0.5)
    with pytest.warns(UserWarning, match=r"layer '0': 18 weights that its mask removes were not zero, and are now"):
        lobs.keep_masks(model, result)
    assert not alive(model, result.masks)


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"7": torch.ones(1).bool()}, ValueError, "there is no layer '7'; the network has 0, 3, 5"),
        ({"3": torch.ones(16, 64)}, ValueError, "layer '3': a mask is a bool tensor, .* got torch.float32"),
        ({"3": torch.ones(64, 16).bool()}, ValueError, r"layer '3': a mask of shape \(64, 16\) does not fit"),
        ([torch.ones(1)], TypeError, "masks must be bool tensors by layer name or a PruneResult, got list"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, error, message):
    with pytest.raises(error, match=message):
        lobs.keep_masks(network(), masks)


def test_weights_that_are_computed_are_refused():
    model = network()
    l1_unstructured(model[3], "weight", 0.5)
    with pytest.raises(ValueError, match=r"layer '3': its weight is computed .* torch.nn.utils.prune.remove"):
        lobs.keep_masks(model)


def test_a_network_without_zeros_is_no_pruned_one():
    with pytest.warns(UserWarning, match="no weight is zero, so that nothing is kept"):
        lobs.keep_masks(nn.Sequential(nn.Linear(4, 3))).remove()
