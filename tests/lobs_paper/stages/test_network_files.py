"""Networks between the stages: what is read is what was written, and what does not fit is refused."""

from __future__ import annotations

import pytest
import torch

from lobs_paper.files import tensor_metadata
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.stages.network_files import HELD_OUT, ORIGIN, check_finite, load_network, save_network


def config(hidden=(5, 4), holdout=0):
    model = {"_target_": "lobs_paper.networks.lenet300.LeNet300", "hidden": list(hidden)}
    return {"model": model, "data": {"holdout": holdout}}


@pytest.fixture
def saved(tmp_path):
    network = LeNet300(hidden=(5, 4))
    save_network(config(), tmp_path / "net.safetensors", network, {ORIGIN: "somewhere"})
    return tmp_path / "net.safetensors", network


def test_a_network_comes_back_with_its_marks(saved):
    path, network = saved
    found = load_network(config(), path, "lobs train")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.state_dict().items())
    assert tensor_metadata(path) == {HELD_OUT: "0", ORIGIN: "somewhere"}


def test_weights_of_another_network_are_refused(saved):
    with pytest.raises(ValueError, match=r"net.safetensors holds another network than model=.*: run `lobs train`"):
        load_network(config(hidden=(6, 4)), saved[0], "lobs train")


def test_a_network_that_has_seen_what_is_to_be_held_out_is_refused(saved):
    message = r"data.holdout=9 was asked for, but .* with data.holdout=0.* run `lobs train data.holdout=9 folders"
    with pytest.raises(ValueError, match=message):
        load_network(config(holdout=9), saved[0], "lobs train")
    save_network(config(holdout=9), saved[0], saved[1])
    load_network(config(holdout=9), saved[0], "lobs train")
    with pytest.raises(ValueError, match=r"data.holdout=0 was asked for, but .* with data.holdout=9"):
        load_network(config(), saved[0], "lobs train")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_network_that_is_no_numbers_is_refused(saved, value):
    path, network = saved
    with torch.no_grad():
        list(network.parameters())[2][1] = value
    save_network(config(), path, network)
    with pytest.raises(
        ValueError, match=r"net.safetensors is no network .* `lobs train`: (NaN|infinite) values in 'fc2"
    ):
        load_network(config(), path, "lobs train")


def test_buffers_may_be_infinite_but_not_nan():
    network = torch.nn.BatchNorm1d(2)
    network.running_mean[0] = -float("inf")
    check_finite(network, "it")
    network.running_mean[1] = float("nan")
    with pytest.raises(ValueError, match="it: NaN values in 'running_mean'"):
        check_finite(network, "it")


def test_a_missing_file_names_its_command(tmp_path):
    with pytest.raises(ValueError, match="does not exist yet: run `lobs train`"):
        load_network(config(), tmp_path / "none", "lobs train")
