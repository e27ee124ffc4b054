"""What the two processes of `test_devices` run, in a module that a spawned process can import."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from helpers.classifier import data, network
from lobs.repair.masks import keep_masks
from lobs_paper.data.splits import load_split
from lobs_paper.files import save_tensors
from lobs_paper.stages.collect import collect
from lobs_paper.stages.retrain import retrain_network
from lobs_paper.training.dns import surgery
from lobs_paper.training.dns_masks import SurgerySettings
from lobs_paper.training.fit import Recipe, Training, fit

# Minibatches of 17 from 90 images: shares of 9 and 8, at the end of an epoch of 3 and 2.
RECIPE = Recipe("sgd", 0.1, momentum=0.9, weight_decay=1e-2, schedule="cosine", batch_size=17, iterations=25)
OPTIONS = {"seed": 0, "device": "cpu", "measure_every": 10}


def fixed_masks():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(module.weight.shape, generator=generator) < 0.5
        for name, module in network().named_modules()
        if isinstance(module, nn.Linear)
    }


def train_all(config):
    """Train with fixed masks, and by surgery; then the stages of `config["stages"]`.

    Every process writes its weights, masks and curves into `config["folder"]`.
    """
    torch.set_num_threads(1)
    rank, folder = os.environ.get("LOCAL_RANK", "0"), Path(config["folder"])
    masked = network()
    with keep_masks(masked, fixed_masks()):
        curve = fit(masked, Training(data(), data(30, seed=1), RECIPE, **OPTIONS))
    save_tensors(folder / f"masked{rank}", masked.state_dict())
    (folder / f"curve{rank}").write_text(json.dumps(asdict(curve)))
    operated = network()
    settings = SurgerySettings(stop=20, density=0.4)
    training = Training(data(), data(30, seed=1), replace(RECIPE, schedule="constant"), **OPTIONS)
    result = surgery(operated, training, settings)
    save_tensors(folder / f"operated{rank}", operated.state_dict())
    save_tensors(folder / f"cut{rank}", result.masks)
    run = {"collect": collect}
    return {"stages": {name: run.get(name, retrain_network)(stage) for name, stage in config["stages"].items()}}


def fail_in_the_second(config):
    """The second process fails while the first one waits for it."""
    if os.environ["LOCAL_RANK"] == "1":
        load_split("nowhere", "mnist", "train")
    torch.distributed.barrier()
    return {}
