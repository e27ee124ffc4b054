"""Stage fetch: download or read a data set once, verify it, store it as safetensors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from lobs_paper.config.choices import DATASETS
from lobs_paper.data.splits import load_tensors, source_file, split_file, split_fingerprint
from lobs_paper.files import save_tensors, write_json
from lobs_paper.stages.progress import waiting


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Fetch the data set unless it is there already; one that is read from `data.root` is read again.

    Args:
        config: what `STAGE_KEYS["fetch"]` lists.

    Returns:
        Metrics: the data set's title and the number of images in each split.
    """
    name, root, folder = config["data"]["name"], config["data"]["root"], config["paths"]["data"]
    if root is not None or not all(split_file(folder, name, split).exists() for split in ("train", "test")):
        with waiting(f"fetching {name}"):
            fetched = import_module(DATASETS[name]).fetch(name, root)
        for split, tensors in fetched.splits.items():
            metadata = {"md5": split_fingerprint(tensors), "title": fetched.title}
            save_tensors(split_file(folder, name, split), tensors, metadata)
        if root is None:
            source_file(folder, name).unlink(missing_ok=True)
        else:
            write_json(source_file(folder, name), {"root": str(Path(root).resolve())})
    splits = {split: load_tensors(folder, name, split) for split in ("train", "test")}
    counts = {f"{split}_images": len(tensors["labels"]) for split, (tensors, _) in splits.items()}
    return {"data": splits["train"][1], **counts}
