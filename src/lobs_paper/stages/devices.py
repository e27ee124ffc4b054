"""Key `devices`: Lightning's Fabric starts that many processes, each runs the stage, the first one writes its files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lobs_paper.progress import first_process
from lobs_paper.stages.faults import is_user_error, machine_fault

# Greetings. Spawned processes import this module before they are given their group.
for _name in ("lightning_fabric.utilities.distributed", "lightning_fabric.utilities.rank_zero"):
    logging.getLogger(_name).setLevel(logging.WARNING)
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)

Stage = Callable[[dict[str, Any]], dict[str, Any]]


def on_devices(stage: Stage, config: dict[str, Any]) -> dict[str, Any]:
    """Run a stage in `devices` processes, one per GPU where GPUs are used; in this process where it is 1.

    Where one process fails, the others are ended.

    Args:
        stage: what each process runs, a function of a module; only the `first_process` may write files.
        config: of the stage.

    Returns:
        The metrics of the first process.

    Raises:
        ValueError: there are fewer GPUs than devices asked for, or a mistake of the user that a process found.
        ProcessException: a process failed in another way; the message holds its traceback.
    """
    count = config["devices"]
    if count == 1:
        return stage(config)
    import torch
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from torch.multiprocessing.spawn import ProcessException

    gpus = torch.cuda.device_count() if config["device"] != "cpu" else 0
    if 0 < gpus < count:
        raise ValueError(f"devices={count} is not accepted here: this machine has {gpus} CUDA devices; use device=cpu")
    fabric = Fabric(
        accelerator="cuda" if gpus else "cpu", devices=count, strategy="ddp_spawn", plugins=[LightningEnvironment()]
    )
    with TemporaryDirectory() as folder:
        try:
            fabric.launch(_process, stage, config, Path(folder))  # type: ignore[arg-type]
        except ProcessException:
            for mistake in sorted(Path(folder).glob("mistake*")):
                raise ValueError(mistake.read_text(encoding="utf-8")) from None
            raise
        finally:
            os.environ.pop("MASTER_PORT", None)  # the next launch takes a free one
        return json.loads((Path(folder) / "metrics").read_text(encoding="utf-8"))


def _process(_: object, stage: Stage, config: dict[str, Any], folder: Path) -> None:
    """One process; results go through files, since a pipe's buffer is small."""
    try:
        metrics = stage(config)
    except Exception as error:
        said = machine_fault(error) or (str(error) if is_user_error(error) else None)
        if said:
            (folder / f"mistake{os.environ['LOCAL_RANK']}").write_text(said, encoding="utf-8")
        raise
    if first_process():
        (folder / "metrics").write_text(json.dumps(metrics), encoding="utf-8")
