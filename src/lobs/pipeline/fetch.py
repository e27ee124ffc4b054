"""Stage fetch: download a data set once, verify it, store it as safetensors."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lobs.experiment.data import fingerprint, load_split, split_file
from lobs.experiment.registry import DATASETS
from lobs.pipeline.files import save_tensors


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Fetch the data set unless it is there already.

    Args:
        config: what `STAGE_KEYS["fetch"]` lists.

    Returns:
        Metrics: the number of images in each split.
    """
    import torch

    name, root = config["data"]["name"], config["paths"]["data"]
    if not all(split_file(root, name, split).exists() for split in ("train", "test")):
        for split, arrays in import_module(DATASETS[name]).fetch().items():
            images, labels = (torch.from_numpy(array.copy()) for array in arrays)
            save_tensors(
                split_file(root, name, split),
                {"images": images, "labels": labels},
                {"md5": fingerprint(images, labels)},
            )
    return {"data": name, **{f"{split}_images": len(load_split(root, name, split)) for split in ("train", "test")}}
