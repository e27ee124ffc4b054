"""What a result was made from, noted in its metrics.json and compared wherever a later stage goes on with it.

A folder holds one result: its metrics.json is removed before the first of its files is replaced, and written after the
last. There stand, under `made_from`, the settings that change the result, and digests of the data, of foreign weights
and of the results of earlier stages; under `digest` one of the tensors beside it, under `files` checksums of its
tables; and a checksum of the metrics.
Of results from before that, nothing is known: they are taken as they are, which is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from lobs_paper.config.requested import BUDGETS, requested
from lobs_paper.results import CHECKSUM, DIGEST, FILES, MADE_FROM, MARKER, checksum, file_checksum

# Keys that change no result, or only in its last digits; or nothing that another stage reads.
WITHOUT_EFFECT = {"name", "device", "threads", "devices", "memory", "density_grid"}
WITHOUT_EFFECT |= {"collect.batch_size", "retrain.measure_every"}
# Compared by the bytes of its file (`lobs_paper.networks.pretrained.origin`), which other names may lead to.
WITHOUT_EFFECT |= {"model.weights"}

# What may be there without being asked for: most methods do without samples.
SPARE = {"collect.kept_samples"}


def settings(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that change a stage's result, by their dotted keys; a budget as the stage prunes to it.

    Args:
        stage: its name.
        config: of the stage.

    Returns:
        The values as JSON gives them back.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key == "folders":
            continue
        flat |= (
            {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, Mapping) else {key: value}
        )
    dropped = {*WITHOUT_EFFECT, *((*BUDGETS, "method.rounds") if stage == "prune" else ())}
    flat = {key: value for key, value in flat.items() if key not in dropped}
    if stage == "prune":
        flat |= requested(config)
    return json.loads(json.dumps(flat, default=str))


def data_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the images that a stage reads, as `fetch` stored them; nothing where they are not there.

    Args:
        config: of the stage.

    Returns:
        By split; of pictures that stay in a folder of their own also those of the pictures.
    """
    from lobs.base.tensor_files import TensorFile
    from lobs_paper.data.splits import source_file, split_file
    from lobs_paper.files import read_object

    if "data" not in config:
        return {}
    root, data = config["folders"]["data"], config["data"]
    remedy, found = f"run `lobs fetch data={data['name']}`", {}
    for split in ("train",) if data["holdout"] else ("train", "test"):
        path = split_file(root, data["name"], split)
        if not path.exists():
            return {}
        file = TensorFile(path, "data set", f"delete it and {remedy}", note=False)
        found[split] = file.metadata.get("md5", file.digest)
        if "names" in file.keys() and (source := source_file(root, data["name"])).exists():  # noqa: SIM118
            found["pictures"] = str(read_object(source).get("pictures"))
    return found


def result_digest(folder: Path) -> str:
    """A digest of the tensors in a stage's folder: the same after a rerun that gave the same."""
    from lobs_paper.files import tensor_file

    digest = sha256()
    for path in (folder / f"{name}.safetensors" for name in ("masks", "model", "statistics")):
        if not path.exists():
            continue
        digest.update(f"{path.name} {tensor_file(path, 'the stage that wrote it', note=False).digest}\n".encode())
    return digest.hexdigest()[:16]


def sealed(metrics: Mapping[str, Any], folder: Path, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a stage with all that tells a later one whether they are still true.

    Args:
        metrics: of the stage.
        folder: where its tensors have been written to.
        made_from: its inputs.

    Returns:
        What is to be written.
    """
    tables = {path.name: file_checksum(path) for path in sorted(folder.glob("*.*")) if path.suffix in (".json", ".csv")}
    for other in (MARKER, "timings.json"):
        tables.pop(other, None)
    marked = {**metrics, MADE_FROM: dict(made_from), DIGEST: result_digest(folder), FILES: tables}
    return {**marked, CHECKSUM: checksum(marked)}


def other_settings(made: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, str] | None:
    """Settings that differ, as overrides; a missing one counts as null.

    Args:
        made: what a result was made with.
        asked: what is asked for.

    Returns:
        The overrides asked for and those that were, of the keys that differ; None: none do.
    """
    differ = [key for key in {**asked, **made} if made.get(key) != asked.get(key)]
    differ = [key for key in differ if key not in SPARE or asked.get(key)]
    if not differ:
        return None
    # Another method also reads other keys, which would say less.
    differ = [key for key in differ if key in made and key in asked] or differ
    one, other = (" ".join(_override(key, values.get(key)) for key in differ[:3]) for values in (asked, made))
    return one, other


def _override(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")
    return f"{key}={text}"
