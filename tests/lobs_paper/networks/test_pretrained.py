"""Weights from files, packages and torchvision: what is read, and what is refused without running it."""

from __future__ import annotations

import pickle
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lobs.base.tensor_files import write_tensors
from lobs_paper.networks.build import build
from lobs_paper.networks.pretrained import load_weights, origin, read_states

TARGET = "torch.nn.Linear"


def model(weights, **arguments):
    return {"_target_": TARGET, "in_features": 3, "out_features": 2, "weights": str(weights), **arguments}


@pytest.fixture
def state():
    torch.manual_seed(0)
    return nn.Linear(3, 2).state_dict()


def loaded(config):
    network = build(config)
    load_weights(network, config)
    return network.state_dict()


def test_state_dicts_are_read_from_every_kind_of_file(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.ckpt")
    for name in ("a.safetensors", "b.pt", "c.ckpt"):
        found = loaded(model(tmp_path / name))
        assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_function_of_a_package_may_give_the_file(tmp_path, monkeypatch, state):
    torch.save(state, tmp_path / "b.pt")
    (tmp_path / "weights_package.py").write_text(
        f"class Files:\n    @staticmethod\n    def path():\n        return {str(tmp_path / 'b.pt')!r}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert torch.equal(loaded(model("weights_package.Files.path"))["weight"], state["weight"])
    sys.modules.pop("weights_package")


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_prefix_of_all_keys_is_stripped_and_named(tmp_path, capsys, state, prefix, suffix):
    path = tmp_path / f"a{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(prefixed(state, prefix), path)
    assert same(loaded(model(path)), state)
    assert capsys.readouterr().out == f"model.weights={path}: loaded the state dict, its keys without {prefix!r}\n"


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "weights of mine"])
def test_the_only_state_dict_of_a_checkpoint_is_found_and_named(tmp_path, capsys, state, key):
    optimizer = torch.optim.Adam(nn.Linear(3, 2).parameters()).state_dict()
    path = tmp_path / "a.pt"
    torch.save({key: prefixed(state, "module."), "optimizer": optimizer, "epoch": 3}, path)
    assert same(loaded(model(path)), state)
    assert f"loaded the state dict under {key!r}, its keys without 'module.'" in capsys.readouterr().out


def test_a_prefix_that_is_the_networks_own_stays(tmp_path, capsys):
    network = nn.ModuleDict({"model": nn.Linear(3, 2)})
    for keys in ("", "model.", "module."):
        torch.save(prefixed(network.state_dict(), keys), tmp_path / "a.pt")
        fresh = nn.ModuleDict({"model": nn.Linear(3, 2)})
        load_weights(fresh, {"_target_": "mine.Network", "weights": str(tmp_path / "a.pt")})
        assert same(fresh.state_dict(), network.state_dict())
        assert bool(capsys.readouterr().out) == bool(keys)


def test_of_several_state_dicts_the_usual_one_is_taken_only_if_no_other_fits(tmp_path, capsys, state):
    path = tmp_path / "a.pt"
    other = {"x": torch.ones(2), "y": torch.ones(2)}
    for key in ("state_dict", "model"):
        torch.save({key: state, "rng": other}, path)
        assert same(loaded(model(path)), state)
        assert f"loaded the state dict under {key!r}\n" in capsys.readouterr().out
    torch.save({"rng": other, "model": state, "ema": prefixed(state, "module.")}, path)
    with pytest.raises(ValueError, match=r"several state dicts, rng, model, ema, of which model, ema fit model\._targ"):
        loaded(model(path))
    torch.save({"model": other, "ema": state}, path)
    with pytest.raises(ValueError, match=r"model, ema, of which ema fits model.*: save the one that is meant"):
        loaded(model(path))
    torch.save({"model": other, "ema": other}, path)
    with pytest.raises(ValueError, match=r"of which none fit model"):
        loaded(model(path))


def test_keys_that_do_not_fit_are_named(tmp_path, state):
    path = tmp_path / "a.pt"
    torch.save({"module.weight": state["weight"], "module.fc.bias": state["bias"]}, path)
    with pytest.raises(ValueError, match=r"network's 2 keys bias is missing, and of the file's 2 \(without their "):
        loaded(model(path))
    torch.save({f"layer{number}.weight": state["weight"] for number in range(5)}, path)
    with pytest.raises(ValueError, match=r"keys weight, bias are missing, .* layer2.weight and 2 more are unexpected"):
        loaded(model(path))
    torch.save({"epoch": 3, "model": {}}, path)
    with pytest.raises(ValueError, match=r"holds epoch, model, none of them a state dict: save"):
        loaded(model(path))


def test_the_counter_of_batch_norm_may_be_absent_and_is_not_blamed(tmp_path):
    config = {"_target_": "mine.Network", "weights": str(tmp_path / "a.pt")}
    norm = nn.Sequential(nn.BatchNorm1d(3)).state_dict()
    del norm["0.num_batches_tracked"]
    torch.save(prefixed(norm, "module."), tmp_path / "a.pt")
    load_weights(nn.Sequential(nn.BatchNorm1d(3)), config)
    with pytest.raises(ValueError, match=r"a.pt does not fit model._target_=mine.Network: '0.weight' has shape \(3,\)"):
        load_weights(nn.Sequential(nn.BatchNorm1d(4)), config)


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_file_with_anything_but_tensors_is_refused_and_runs_nothing(tmp_path, capsys):
    torch.save({"weight": Harmful()}, tmp_path / "a.pt")
    torch.save(nn.Linear(3, 2), tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Harmful()))
    for name in ("a.pt", "b.pt", "c.pt"):
        with pytest.raises(ValueError, match="is no state dict that is read without running code") as raised:
            loaded(model(tmp_path / name))
        assert "\x1b" not in str(raised.value)
    (tmp_path / "d.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model.weights=.*d.safetensors is damaged or no state dict \(7 bytes\)"):
        loaded(model(tmp_path / "d.safetensors"))
    torch.save([1, 2], tmp_path / "e.pt")
    with pytest.raises(ValueError, match="holds a list, expected a state dict"):
        loaded(model(tmp_path / "e.pt"))
    assert "this must never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.pt", "model.weights=nowhere.pt does not exist: accepted is a state-dict file"),
        ("no_such_package.function", "is neither a file nor a function that can be imported"),
        (".", "is neither a file nor a function that can be imported"),
        ("builtins.dict", "model.weights=builtins.dict gives {}, expected is the path of a file"),
    ],
)
def test_what_is_not_there_is_named(weights, message):
    with pytest.raises(ValueError, match=message):
        loaded(model(weights))


def test_weights_of_another_network_are_refused(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    expected = r"a.pt does not fit model._target_=torch.nn.Linear: 'weight' has shape \(2, 3\) in the file and \(4, 3\)"
    with pytest.raises(ValueError, match=expected + r" in the network: .* model.<argument>=..., say model.num_classes"):
        loaded(model(tmp_path / "a.pt", out_features=4))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_numbers_of_another_kind_are_not_cast(tmp_path, state, dtype):
    torch.save({key: value.to(dtype) for key, value in state.items()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"'weight' holds {dtype}, expected are floating-point numbers"):
        loaded(model(tmp_path / "a.pt"))
    torch.save({key: value.double() for key, value in state.items()}, tmp_path / "b.pt")
    assert same(
        {key: value.double() for key, value in loaded(model(tmp_path / "b.pt")).items()}, torch.load(tmp_path / "b.pt")
    )


def test_a_file_of_ours_is_checked_when_it_is_read(tmp_path, state):
    path = tmp_path / "a.safetensors"
    write_tensors(path, state, state.__getitem__, {})
    assert same(loaded(model(path)), state)
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.weights=.*a.safetensors is damaged .* has another checksum"):
        loaded(model(path))


def test_torchvisions_weights_are_downloaded_or_the_way_round_is_named(monkeypatch):
    from torchvision.models import ResNet18_Weights

    config = {"_target_": "torchvision.models.resnet18", "weights": "IMAGENET1K_V9"}
    with pytest.raises(ValueError, match=r"IMAGENET1K_V9 is not accepted for .*resnet18: IMAGENET1K_V1"):
        load_weights(nn.Linear(1, 1), config)
    config["weights"] = "IMAGENET1K_V1"
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(ValueError, match=r"downloaded \(no internet\): get .*pth .* model.weights=<that file>"):
        load_weights(nn.Linear(1, 1), config)
    network = build(config)
    expected = {key: torch.full_like(value, 2) for key, value in network.state_dict().items()}
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_, **__: expected)
    load_weights(network, config)
    assert torch.equal(network.conv1.weight, expected["conv1.weight"])


def unreachable(*_, **__):
    raise OSError("no internet")


def test_the_origin_changes_with_the_file_and_with_the_network(tmp_path, state):
    path = tmp_path / "a.pt"
    torch.save(state, path)
    first = origin(model(path))
    assert origin(model(path)) == first
    assert origin(model(path, bias=False)) != first
    path.write_bytes(path.read_bytes() + b" ")
    assert origin(model(path)) != first


@pytest.mark.parametrize("name", ["a.txt", "a.pt", "a.safetensors", "a.ckpt"])
@pytest.mark.parametrize(
    "content",
    [b"", b"1.5", b"some words\nof text", b"PK\x03\x04", b"\x80\x02}q", b"I1\n.", b"\xff" * 99, b"\x08" + bytes(30)],
)
def test_a_file_of_anything_else_is_no_weights(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"model.weights=.*{name} "):
        read_states(tmp_path / name)


def test_a_file_that_claims_more_than_it_has_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "small.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("small/data/0", bytes(10**7))
    with pytest.raises(
        ValueError, match=r"small.pt claims to hold 10000000 bytes in \d+, which no file of PyTorch does"
    ):
        read_states(path)
    torch.save({"weight": torch.zeros(1000)}, path)
    assert torch.equal(read_states(path)[""]["weight"], torch.zeros(1000))


def test_what_a_network_keeps_beside_its_tensors_is_named_where_it_is_missing(tmp_path, state):
    class Keeping(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="_extra_state is missing"):
        load_weights(Keeping(3, 2), {"_target_": "mine.Keeping", "weights": str(tmp_path / "a.pt")})
