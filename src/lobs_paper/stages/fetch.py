"""Stage fetch: download or read a data set once, verify it, store it as safetensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lobs_paper.config.choices import fetcher
from lobs_paper.config.own_code import own_code
from lobs_paper.data.sources import changed, noted_source
from lobs_paper.data.splits import Fetched, load_tensors, source_file, split_file, split_fingerprint
from lobs_paper.files import read_object, remove_abandoned, save_tensors, write_json
from lobs_paper.progress import waiting
from lobs_paper.targets import import_target

SPLITS = ("train", "test")


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Fetch the data set unless it is there already; one that is read from `data.root` is read again.

    Args:
        config: what `STAGE_KEYS["fetch"]` lists.

    Returns:
        Metrics: the data set's title and the number of images in each split.
    """
    name, root, folder = config["data"]["name"], config["data"]["root"], config["folders"]["data"]
    reason = stale_data(config)
    if root is not None or reason != "":
        # Read again from where it was read, which is known of data that is there and was read from a folder.
        root = _noted(config).get("root") if root is None and reason else root
        with waiting(f"fetching {name}"):
            source = {} if root is None else noted_source(root)
            store(fetch(fetcher(config["data"]), name, root), folder, name, {**source, **_made_by(config)})
    splits = {split: load_tensors(folder, name, split) for split in SPLITS}
    counts = {f"{split}_images": len(tensors["labels"]) for split, (tensors, _) in splits.items()}
    return {"data": splits["train"][1], **counts}


def stale_data(config: Mapping[str, Any], unknown: bool = True) -> str | None:
    """Why a stored data set is not the one that is asked for.

    Args:
        config: with groups `data` and `folders`.
        unknown: whether one is taken that does not say what it was read from.

    Returns:
        A sentence; empty where it fits, None where there is none.
    """
    name, root, folder = config["data"]["name"], config["data"]["root"], config["folders"]["data"]
    if not all(split_file(folder, name, split).exists() for split in SPLITS):
        return None
    noted, target = _noted(config), config["data"].get("_target_")
    again = f"data.name={name} data._target_={target}" if target else f"data={name}"
    again = f"run `lobs fetch {again}{'' if root is None else f' data.root={root}'}` first"
    for key, value in _made_by(config).items():
        if noted.get(key, value) != value:
            what = f"data._target_={value}" if key == "target" else "the code of data._target_"
            return f"{what} is not what {folder}/{name} was read by: {again}"
    if root is None:
        # Pictures that stay in their folder are read from there, an archive's have been copied.
        if "pictures" in noted and changed(noted):
            return f"the pictures in {noted['root']} have changed since {folder}/{name} was read from them: {again}"
        return ""
    if (unknown and "root" not in noted) or (noted.get("root") == str(Path(root).resolve()) and not changed(noted)):
        return ""
    return f"data.root={root} is not what {folder}/{name} was read from, or has changed since: {again}"


def _noted(config: Mapping[str, Any]) -> dict[str, Any]:
    """What was noted when the data set was read; nothing of one that an earlier version read."""
    source = source_file(config["folders"]["data"], config["data"]["name"])
    return read_object(source) if source.exists() else {}


def _made_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """What reads a data set, and the user's own code in it."""
    return {"target": fetcher(config["data"]), "code": own_code({"data": config["data"]})}


def store(fetched: Fetched, folder: str, name: str, source: Mapping[str, Any]) -> None:
    """Write a data set; one that is cut short lacks its test images, so that splits of two are never mixed.

    Args:
        fetched: the data set.
        folder: of all data sets.
        name: of this one.
        source: what is noted of where it comes from.
    """
    split_file(folder, name, "test").unlink(missing_ok=True)
    source_file(folder, name).unlink(missing_ok=True)
    for split in SPLITS:
        tensors = fetched.splits[split]
        metadata = {"md5": split_fingerprint(tensors), "title": fetched.title}
        if split == "test":
            write_json(source_file(folder, name), source)
        save_tensors(split_file(folder, name, split), tensors, metadata)
    remove_abandoned(split_file(folder, name, "test").parent)


def fetch(target: str, name: str, root: str | None) -> Fetched:
    """Call what fetches a data set.

    Args:
        target: the dotted path of a function or class, which is given the data set's name and root.
        name: of the data set.
        root: `data.root`.

    Returns:
        What it gives: a `Fetched`, or anything else with a title and splits.

    Raises:
        ValueError: the target cannot be imported, takes other arguments, or gives something else, such as whole
            numbers that are no bytes.
    """
    read = import_target("data._target_", target)
    try:
        inspect.signature(read).bind(name, root)
    except TypeError as error:
        raise ValueError(
            f"data._target_={target!r} is not accepted: it is called with name and root ({error})"
        ) from None
    found = read(name, root)
    splits = getattr(found, "splits", None)
    whole = isinstance(splits, Mapping) and all("labels" in splits.get(split, ()) for split in SPLITS)
    if not whole or not isinstance(getattr(found, "title", None), str):
        raise ValueError(
            f"data._target_={target!r} gives a {type(found).__name__}: expected `title` and `splits`, images and "
            f"labels of train and test, as in lobs_paper.data.splits.Fetched"
        )
    for split in SPLITS:
        _check_tensors(found.splits[split], f"data._target_={target!r}: {split}")
    return found


def _negative(labels: torch.Tensor) -> bool:
    """Whether pictures have labels below 0; of pixels that is what does not count."""
    return labels.dim() == 1 and bool((labels < 0).any())


def _check_tensors(tensors: Mapping[str, Any], where: str) -> None:
    """Refuse what would be read as something else later."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{where}.{name} is a {type(tensor).__name__}, expected a tensor")
    labels, images = tensors["labels"], tensors.get("images")
    if labels.is_floating_point() or labels.dtype == torch.bool or not len(labels) or _negative(labels):
        raise ValueError(f"{where}.labels are {labels.dtype} of {len(labels)}: expected whole numbers, 0 or more")
    if images is None:
        return
    if images.dtype not in (torch.uint8, torch.float16, torch.float32, torch.float64):
        raise ValueError(
            f"{where}.images are {images.dtype}: expected uint8, of which 255 becomes 1, or floats, "
            "which stay as they are"
        )
    if images.dim() not in (3, 4) or len(images) != len(labels) or not bool(torch.isfinite(images).all()):
        raise ValueError(
            f"{where}.images are {list(images.shape)} for {len(labels)} labels: expected finite numbers, as many "
            "images as labels, [n, height, width] or [n, channels, height, width]"
        )
