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
# # From pruned to deployed
#
# A pruned network is full of zeros, and zeros are multiplied like any other number. So what is gained, and how?
# Smaller files at once, a smaller network where whole units are empty, and speed where a kernel for zeros is really
# faster. All is measured below, and where nothing is gained that is said, too.
#
# It needs `pip install '.[export,plots]' onnxruntime`, from a checkout.
#
# ## A network that reads digits

# %%
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import lobs

torch.set_num_threads(1)
rng = np.random.default_rng(0)
font = ImageFont.load_default(17)


def digit(number, side=20):
    picture = Image.new("L", (side, side))
    ImageDraw.Draw(picture).text(rng.normal(side / 2, 1, 2), str(number), fill=255, font=font, anchor="mm")
    return np.asarray(picture.rotate(rng.normal(0, 8))) / 255 + rng.normal(0, 0.15, (side, side))


def digits(count):
    labels = torch.arange(count) % 10
    return torch.tensor(np.stack([digit(int(label)) for label in labels]), dtype=torch.float32)[:, None], labels


def fresh():
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(216, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


def train(network, epochs):
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(pictures)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pictures[rows]), labels[rows]).backward()
            optimizer.step()


@torch.no_grad()
def error(network):
    return 100 * (network(test_pictures).argmax(1) != test_labels).float().mean().item()


pictures, labels = digits(2000)
test_pictures, test_labels = digits(1000)
torch.manual_seed(0)
network = fresh()
train(network, epochs=3)
print(f"dense: {error(network):.1f}% of the test pictures are misread")

# %% [markdown]
# ## Two ways to prune
#
# Single weights, wherever they are: one in twenty is kept. Or whole units: ApoZ removes those that give zero most
# often, until one weight in five is left. Units are missed more than weights, so the second network is trained for a
# moment.

# %%
statistics = lobs.collect_statistics(network, pictures.split(200))
scattered = lobs.prune(network, statistics, method="exact_obs", density=0.05, allocation="relative")
units = lobs.prune(network, statistics, method="apoz", density=0.2, exclude=["0", "3"])
with lobs.keep_masks(units.model, units):
    train(units.model, epochs=1)
for name, result in {"single weights": scattered, "whole units": units}.items():
    print(f"{name}: {error(result.model):.1f}% misread, {100 * result.network_density:.0f}% of the weights kept")

# %% [markdown]
# ## Compact: what is empty leaves
#
# `lobs.compact` takes out units that are empty and says what had to stay. The network that comes out is smaller,
# ordinary and computes the same. Scattered zeros leave some units empty; removed units all go.

# %%
compacted = {"single weights": lobs.compact(scattered.model, pictures[:8])}
compacted["whole units"] = lobs.compact(units.model, pictures[:8])
for name, smaller in compacted.items():
    left = sum(parameter.numel() for parameter in smaller.model.parameters())
    print(f"{name}: {left} of {sum(p.numel() for p in network.parameters())} parameters are left")
print(compacted["whole units"].model)

# %% [markdown]
# ## Files

# %%
torch.save(network.state_dict(), "dense.pt")
lobs.save_sparse(scattered.model, "scattered.safetensors")
lobs.save_compact(compacted["whole units"], "units.safetensors")
again = lobs.load_compact("units.safetensors", into=fresh())  # into a fresh network of the old shape
assert torch.equal(again(pictures[:8]), compacted["whole units"].model(pictures[:8]))
lobs.export_onnx(network, pictures[:8], "dense.onnx")
lobs.export_onnx(scattered.model, pictures[:8], "scattered.onnx")
lobs.export_onnx(compacted["whole units"].model, pictures[:8], "units.onnx")

files = ["dense.pt", "scattered.safetensors", "units.safetensors", "dense.onnx", "scattered.onnx", "units.onnx"]
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
kinds = ["tab:gray", "tab:blue", "tab:green"]
bars = axes.barh(files, [Path(file).stat().st_size / 1024 for file in files], color=2 * kinds)
axes.bar_label(bars, fmt=" %.0f")
axes.set(xlabel="KiB", xlim=(0, 1.12 * Path("dense.onnx").stat().st_size / 1024))
axes.invert_yaxis()

# %% [markdown]
# A sparse file stores no zeros. ONNX has no place to leave them out, so that `scattered.onnx` is as large as the
# dense one.
#
# ## Accelerate: let the kernels race
#
# `lobs.accelerate` compacts, then times for every layer each kernel that can compute it, on the inputs that you give,
# and takes what is faster as a whole. Give it a batch of the size that you will use.

# %%
batch = test_pictures[:64]
fast = {name: lobs.accelerate(result.model, batch) for name, result in {"scattered": scattered, "units": units}.items()}
print(fast["scattered"])

# %% [markdown]
# ## Is it faster?
#
# In PyTorch, and in onnxruntime with the exported files. All take turns, so that what else the machine does slows all
# of them down alike.

# %%
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
sessions = {
    name: onnxruntime.InferenceSession(f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    for name in ("dense", "scattered", "units")
}
runs = {
    "PyTorch": {"dense": network, "scattered": fast["scattered"].model, "units": fast["units"].model},
    "onnxruntime": {
        name: lambda x, session=session: session.run(None, {"input": x.numpy()}) for name, session in sessions.items()
    },
}


@torch.no_grad()
def milliseconds(networks):
    times = {name: [] for name in networks}
    for _ in range(40):
        for name, run in networks.items():
            start = time.perf_counter()
            run(batch)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: median(spent) for name, spent in times.items()}


figure, panels = plt.subplots(1, 2, figsize=(9, 2.2), layout="constrained")
for axes, (runtime, networks) in zip(panels, runs.items()):
    spent = milliseconds(networks)
    bars = axes.barh(list(spent), list(spent.values()), color=kinds)
    axes.bar_label(bars, fmt=" %.2f")
    axes.set(title=runtime, xlabel="ms per batch of 64", xlim=(0, 1.2 * max(spent.values())))
    axes.invert_yaxis()

# %% [markdown]
# What to expect: removed units make every runtime faster. Scattered zeros help in PyTorch where sparse kernels won
# above (wide layers, few weights left, batches of some size), and in onnxruntime not at all. Times are of the machine
# that built this page and differ on yours; measured with more care: [accelerate.md](../../reports/accelerate.md).
#
# The exported network gives the same answers:

# %%
answers = sessions["units"].run(None, {"input": batch.numpy()})[0]
with torch.no_grad():
    difference = np.abs(answers - units.model(batch).numpy()).max()
print(f"largest difference of the outputs: {difference:.1e}")
assert difference < 1e-3
