"""Stage fetch: download or read a data set once, verify it, store it as safetensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lobs_paper.config.choices import fetcher
from lobs_paper.data.sources import noted_source
from lobs_paper.data.splits import Fetched, load_tensors, source_file, split_file, split_fingerprint
from lobs_paper.files import save_tensors, write_json
from lobs_paper.stages.progress import waiting
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
    if root is not None or not all(split_file(folder, name, split).exists() for split in SPLITS):
        with waiting(f"fetching {name}"):
            source = None if root is None else noted_source(root)
            store(fetch(fetcher(config["data"]), name, root), folder, name, source)
    splits = {split: load_tensors(folder, name, split) for split in SPLITS}
    counts = {f"{split}_images": len(tensors["labels"]) for split, (tensors, _) in splits.items()}
    return {"data": splits["train"][1], **counts}


def store(fetched: Fetched, folder: str, name: str, source: Mapping[str, Any] | None) -> None:
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
        if split == "test" and source is not None:
            write_json(source_file(folder, name), source)
        save_tensors(split_file(folder, name, split), tensors, metadata)


def fetch(target: str, name: str, root: str | None) -> Fetched:
    """Call what fetches a data set.

    Args:
        target: the dotted path of a function or class, which is given the data set's name and root.
        name: of the data set.
        root: `data.root`.

    Returns:
        What it gives: a `Fetched`, or anything else with a title and splits.

    Raises:
        ValueError: the target cannot be imported, takes other arguments, or gives something else.
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
    return found
