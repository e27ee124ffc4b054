"""What an experiment can ask for by name. Pure Python, so that a configuration is checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What downloads or reads the paper's data sets and folders of pictures; any other is named by data._target_.
DATASETS: dict[str, str] = {
    "mnist": "lobs_paper.data.mnist.fetch",
    "cifar10": "lobs_paper.data.cifar10.fetch",
    "imagenet": "lobs_paper.data.image_folder.fetch",
    "imagenet_sample": "lobs_paper.data.image_folder.fetch",
    "folder": "lobs_paper.data.image_folder.fetch",
}

OPTIMIZERS: tuple[str, ...] = ("sgd", "adam")
SCHEDULES: tuple[str, ...] = ("constant", "cosine")
# How training images are varied at random; what a crop is depends on the data (`lobs_paper.data.augmentation`).
AUGMENTATIONS: tuple[str, ...] = ("none", "flip", "crop_flip")
# What training aims at: the labels, or the dense network's outputs (Hinton et al. 2015, at temperature 1).
TARGETS: tuple[str, ...] = ("labels", "dense")
DEVICES: tuple[str, ...] = ("auto", "cpu", "cuda")
# Allocations of the methods that train: each layer's threshold for |w| decides what it keeps.
THRESHOLDS: dict[str, str] = {
    "lwc": "a quality parameter times the standard deviation of the layer's weights (LWC)",
    "dns": "mean + rate x standard deviation of the layer's |w|, updated while the network trains (DNS)",
}
# Those whose curvature `lobs.calibration.loss_hessian` can collect.
LOSSES = ("cross_entropy", "mse")


def fetcher(data: Mapping[str, Any]) -> str:
    """The dotted path of the function or class that fetches the data set of a group `data`."""
    return data.get("_target_") or DATASETS[data["name"]]
