"""A small made-up data set under MNIST's name, and a runner of the command line inside it."""

from __future__ import annotations

# Overrides that make every stage a matter of a moment.
SMALL = [
    "model.hidden=[16,8]",
    "train.epochs=5",
    "train.batch_size=32",
    "train.learning_rate=0.1",
    "retrain.iterations=22",
    "retrain.learning_rate=0.05",
    "retrain.measure_every=5",
    "retrain.batch_size=32",
    "collect.batch_size=70",
    "threads=1",
    "device=cpu",
]

# As few images and steps as give a result at all.
TINY = [*SMALL, "train.epochs=1", "retrain.iterations=3", "density_grid=[0.5]", "method=magnitude", "density=0.2"]
STAGES = ("train", "collect", "prune", "retrain", "evaluate")

# The methods that prune and train in turn: by L-OBS in rounds, by thresholds in rounds, by surgery.
TRAINED = [
    ["method=lobs_iterative"],
    ["method=lwc"],
    ["method=dns", "method.surgery.stop=15", "density=0.1"],
]


def write_data(root, train=400, test=200, seed=1):
    """Ten random prototypes plus noise: learnable at once, but not without errors."""
    import torch

    from lobs_paper.data.splits import fingerprint, split_file
    from lobs_paper.files import save_tensors

    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(10, 28, 28, generator=generator)
    prototypes[:, :3] = 0  # dead inputs, as MNIST's margins are
    for split, count in (("train", train), ("test", test)):
        labels = torch.arange(count) % 10
        noise = torch.randn(count, 28, 28, generator=generator) * (prototypes[labels] > 0)
        images = (255 * (0.6 * prototypes[labels] + 0.4 * noise)).clamp(0, 255).to(torch.uint8)
        labels = labels.to(torch.uint8)
        save_tensors(
            split_file(root, "mnist", split),
            {"images": images, "labels": labels},
            {"md5": fingerprint(images, labels)},
        )


def lobs(*words):
    """Run a command and expect it to succeed."""
    from lobs_paper.cli import main

    assert main(list(words)) == 0
