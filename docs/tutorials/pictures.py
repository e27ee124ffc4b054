# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Prune a torchvision network on a folder of pictures
#
# From a folder of pictures to a pruned network that is nearly as good as before. It takes half a minute on a CPU,
# since the pictures are small and so is the network. Nothing is downloaded: the pictures are drawn here, and the
# network is trained here for a few seconds. Yours comes with its weights; then begin at [Prune it](#prune-it).
#
# It needs `pip install '.[plots]' torchvision`, from a checkout.
#
# ## A folder of pictures
#
# Four kinds of cloth, one folder per class, as torchvision's `ImageFolder` reads them.

# %%
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn
from torchvision import datasets, models, transforms

import lobs

rng = np.random.default_rng(0)


def cloth(kind, side=48):
    y, x = np.mgrid[:side, :side] + rng.uniform(0, side)
    tilt, period = rng.normal(0, 0.15), rng.uniform(8, 16)
    a = np.sin(2 * np.pi * (x * np.cos(tilt) - y * np.sin(tilt)) / period)
    b = np.sin(2 * np.pi * (x * np.sin(tilt) + y * np.cos(tilt)) / period)
    woven = {"checked": a * b, "dotted": a + b - 1, "level": b, "upright": a}[kind] > 0
    pixels = rng.uniform(0, 255, (2, 3))[woven.astype(int)] + rng.normal(0, 30, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


for part, count in {"train": 120, "val": 60}.items():
    for kind in ("checked", "dotted", "level", "upright"):
        folder = Path("photos", part, kind)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            cloth(kind).save(folder / f"{number}.png")

as_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)])
train, val = (datasets.ImageFolder(f"photos/{part}", as_tensor) for part in ("train", "val"))
loader = torch.utils.data.DataLoader(train, batch_size=20, shuffle=True)

figure, panels = plt.subplots(1, 4, figsize=(8, 2))
for axes, number in zip(panels, range(0, len(train), 120)):
    axes.imshow(Image.open(train.samples[number][0]))
    axes.set_title(train.classes[train.targets[number]])
    axes.axis("off")

# %% [markdown]
# ## A trained network
#
# A small DenseNet of torchvision's. Any other will do: the library asks for a `torch.nn.Module` and no more.

# %%
torch.manual_seed(0)
network = models.DenseNet(growth_rate=12, block_config=(2, 2, 2), num_init_features=24, bn_size=2, num_classes=4)
pictures, labels = (torch.cat(parts) for parts in zip(*torch.utils.data.DataLoader(val, batch_size=60)))


def train_epoch(network, optimizer, schedule=None):
    network.train()
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    network.eval()


@torch.no_grad()
def accuracy(network):
    return 100 * (network.eval()(pictures).argmax(1) == labels).float().mean().item()


epochs = 7
optimizer = torch.optim.AdamW(network.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * len(loader))
for _ in range(epochs):
    train_epoch(network, optimizer, schedule)
print(f"dense: {accuracy(network):.1f}% of the {len(labels)} pictures in photos/val are recognised")

# %% [markdown]
# ## Prune it
#
# One weight in ten stays. The loader is the one of training, in evaluation's preprocessing; its labels are not read.
# First what everybody can do: remove the smallest weights of every layer.

# %%
accuracies = {"dense": accuracy(network)}
by_size = lobs.prune(network, batches=loader, density=0.1, method="magnitude")
accuracies["smallest removed"] = accuracy(by_size.model)

# %% [markdown]
# Then exact OBS: it removes what a layer's output misses least, and moves the other weights to make up for it.

# %%
statistics = lobs.collect_statistics(network, loader)
plan = lobs.plan(network, statistics, method="exact_obs", batches=loader)
accuracies["exact OBS"] = accuracy(plan.prune(density=0.1).model)

# %% [markdown]
# So far every layer keeps its tenth. Some can do with less, others cannot: `allocation="global"` shares the tenth out
# by what the network's outputs say. `refit` then moves the kept weights until the outputs are near to the dense
# network's. Still no label is read.

# %%
result = lobs.prune(network, batches=loader, density=0.1, method="exact_obs", allocation="global", refit=60)
accuracies["shared out, refitted"] = accuracy(result.model)
print(result)

# %%
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
bars = axes.barh(list(accuracies), list(accuracies.values()), color=["gray", "tab:red", "tab:blue", "tab:green"])
axes.bar_label(bars, fmt=" %.0f%%")
axes.axvline(25, color="black", linewidth=1, linestyle="dotted")
axes.set(xlabel="recognised, % (dotted: by guessing)", xlim=(0, 108))
axes.invert_yaxis()

# %% [markdown]
# Without a `method=` the library does all of this and more: front to back, in stages. That takes minutes where this
# took seconds, so we leave it out here.
#
# ## Look at it
#
# Which layers lost most, and what does each keep?

# %%
figure = result.plot()

# %% [markdown]
# And what would other densities cost? A plan has looked at the network already, so asking is cheap. Where the curves
# bend upwards, the network begins to suffer.

# %%
figure = plan.plot([0.7, 0.5, 0.3, 0.2, 0.1, 0.05])

# %% [markdown]
# ## Go on training
#
# With labels you can go on training. Whether it helps a network that was refitted already depends on the learning rate
# and on how long you train: compare the two numbers. `keep_masks` keeps the removed weights at zero, whatever the
# optimizer does.

# %%
before = accuracy(result.model)
with lobs.keep_masks(result.model, result):
    train_epoch(result.model, torch.optim.AdamW(result.model.parameters(), lr=1e-3))
zeros = sum(int((~mask).sum()) for mask in result.masks.values())
print(f"before: {before:.1f}%, after one epoch: {accuracy(result.model):.1f}%; {zeros} weights are still zero")

# %% [markdown]
# ## What is gained
#
# The file is smaller at once. The network is not faster yet: a zero is still multiplied ([From pruned to
# deployed](deployed.py)).

# %%
torch.save(network.state_dict(), "dense.pt")
lobs.save_sparse(result.model, "pruned.safetensors")
for name in ("dense.pt", "pruned.safetensors"):
    print(f"{name}: {Path(name).stat().st_size / 1024:.0f} KiB")
again = lobs.load_sparse("pruned.safetensors", into=models.DenseNet(12, (2, 2, 2), 24, 2, num_classes=4))
assert accuracy(again) == accuracy(result.model)

# %% [markdown]
# The same without a line of Python, for weights in a file and pictures in a folder: [by one
# command](../own-network.md#by-one-command). Which method when, with what was measured on larger networks:
# [methods](../methods.md).
