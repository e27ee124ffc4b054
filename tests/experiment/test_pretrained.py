"""Weights from files, packages and torchvision: what is read, and what is refused without running it."""

from __future__ import annotations

import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lobs.experiment.networks import build
from lobs.experiment.pretrained import load_weights, origin

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


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_file_with_anything_but_tensors_is_refused_and_runs_nothing(tmp_path, capsys):
    torch.save({"weight": Harmful()}, tmp_path / "a.pt")
    torch.save(nn.Linear(3, 2), tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "d.safetensors").write_bytes(b"damaged")
    for name in ("a.pt", "b.pt", "c.pt", "d.safetensors"):
        with pytest.raises(ValueError, match="is no state dict that is read without running code"):
            loaded(model(tmp_path / name))
    torch.save([1, 2], tmp_path / "e.pt")
    with pytest.raises(ValueError, match="holds a list, expected a state dict"):
        loaded(model(tmp_path / "e.pt"))
    assert "this must never run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.pt", "model.weights=nowhere.pt does not exist: accepted is a state-dict file"),
        ("no_such_package.function", "is neither a file nor a function that can be imported"),
    ],
)
def test_what_is_not_there_is_named(weights, message):
    with pytest.raises(ValueError, match=message):
        loaded(model(weights))


def test_weights_of_another_network_are_refused(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt does not fit model._target_=torch.nn.Linear: .*size mismatch"):
        loaded(model(tmp_path / "a.pt", out_features=4))


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
