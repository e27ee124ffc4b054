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
# # Compare methods at a glance
#
# Six methods, one network, one look: how many errors does each make at each density, and how long does it take? It
# runs in seconds, so that you can put your own network in its place. Measurements on larger networks are in [Which
# method when](../methods.md).
#
# It needs `pip install '.[plots]'`, from a checkout.
#
# ## Something to recognise
#
# Digits, turned, moved and noisy, and a network with two hidden layers that reads them.

# %%
import time

import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import lobs

rng = np.random.default_rng(0)
fonts = [ImageFont.load_default(size) for size in (15, 17, 19)]


def digit(number, side=20):
    picture = Image.new("L", (side, side))
    ImageDraw.Draw(picture).text(
        rng.normal(side / 2, 1, 2), str(number), fill=255, font=fonts[rng.integers(3)], anchor="mm"
    )
    pixels = np.asarray(picture.rotate(rng.normal(0, 8))) / 255
    return pixels + rng.normal(0, 0.15, (side, side))


def digits(count):
    labels = torch.arange(count) % 10
    return torch.tensor(np.stack([digit(int(label)) for label in labels]), dtype=torch.float32), labels


pictures, labels = digits(3000)
test_pictures, test_labels = digits(1000)
figure, panels = plt.subplots(1, 10, figsize=(8, 1))
for axes, picture in zip(panels, pictures):
    axes.imshow(picture, cmap="gray_r")
    axes.axis("off")

# %%
torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(400, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))


def train(network, epochs, rate):
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(pictures)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pictures[rows]), labels[rows]).backward()
            optimizer.step()


@torch.no_grad()
def error(network):
    return 100 * (network(test_pictures).argmax(1) != test_labels).float().mean().item()


train(network, epochs=6, rate=2e-3)
dense = error(network)
print(f"dense: {dense:.1f}% of the test pictures are misread")

# %% [markdown]
# ## Six methods
#
# The statistics are collected once and serve all methods. A plan looks at the network once and is then asked for
# every density.

# %%
statistics = lobs.collect_statistics(network, pictures.split(500))
densities = [0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03]
names = ["random", "magnitude", "wanda", "sparsegpt", "lobs", "exact_obs"]
errors, lost, seconds = {}, {}, {}
lobs.prune(network, statistics, method="exact_obs", density=0.5)  # once for nothing: its code is compiled on first use
for name in names:
    start = time.perf_counter()
    plan = lobs.plan(network, statistics, method=name)
    results = [plan.prune(density=density) for density in densities]
    seconds[name] = time.perf_counter() - start
    errors[name] = [error(result.model) for result in results]
    lost[name] = [point.relative_error for point in plan.curve(densities)]
print("\n".join(f"{name:10} {line}" for name, line in lobs.methods().items() if name in names))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for name in names:
    left.plot(densities, errors[name], "o-", label=name)
    right.plot(densities, lost[name], "o-", label=name)
left.axhline(dense, color="black", linewidth=1, linestyle="dotted", label="dense")
left.set(ylabel="test error, %")
right.set(ylabel="share of a layer's output that is lost (mean)", yscale="log")
for axes in (left, right):
    axes.set(xlabel="weights kept, %", xscale="log")
    axes.set_xticks(densities, [f"{100 * density:.2g}" for density in densities])
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.3)
figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)

# %% [markdown]
# Read both from right to left: more and more weights are gone. On the right is what the methods try to keep small,
# the error of each layer by itself; on the left what comes of it. `random`, `magnitude` and `wanda` leave the kept
# weights as they are. `sparsegpt`, `lobs` and `exact_obs` move them to make up for the removed ones. `lobs`, the
# paper's, does so with an inverse that it computes once, which is right for few removals and wrong for many;
# `exact_obs` brings it up to date after every single one.
#
# Net-Trim, OBD and ApoZ are left out: they want other statistics, or remove whole units. `lobs.methods()` names all.
#
# ## What it costs
#
# Seconds for all eight densities together.

# %%
figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
bars = axes.barh(names, [seconds[name] for name in names], color="tab:gray")
axes.bar_label(bars, fmt=" %.2f")
axes.set(xlabel="seconds", xlim=(0, 1.15 * max(seconds.values())))
axes.invert_yaxis()

# %% [markdown]
# On layers this small all are quick. With a layer's inputs `exact_obs` grows fastest: from some thousand on take
# `sparsegpt`, or `exact_obs` in groups of columns.
#
# ## Does training make them equal?
#
# Here are two epochs with labels, at a density of 5%; the zeros are kept.

# %%
trained = {}
for name in names:
    result = lobs.prune(network, statistics, method=name, density=0.05)
    with lobs.keep_masks(result.model, result):
        train(result.model, epochs=2, rate=1e-3)
    trained[name] = error(result.model)

figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
at = np.arange(len(names))
axes.barh(at - 0.2, [errors[name][densities.index(0.05)] for name in names], 0.4, label="pruned to 5%")
axes.barh(at + 0.2, [trained[name] for name in names], 0.4, label="then trained")
axes.axvline(dense, color="black", linewidth=1, linestyle="dotted", label="dense")
axes.set(xlabel="test error, %", yticks=at, yticklabels=names)
axes.invert_yaxis()
figure.legend(loc="outside right center", frameon=False)

# %% [markdown]
# Compare each method's two bars: how much did training mend, and is the order of the methods still the same? Where
# there are no labels or no time, the bars "pruned to 5%" are what you have. On so small a network, trained for so
# short a time, the order is not the paper's. This is one run with one seed: small differences mean nothing. Networks
# that were trained for longer are in the column "retrained" of [the measured
# networks](../methods.md#measured-on-networks).
