"""What an experiment can ask for by name. Pure Python, so that a configuration is checked before torch is imported."""

from __future__ import annotations

# Data set -> the module whose fetch() downloads it.
DATASETS: dict[str, str] = {"mnist": "lobs.experiment.mnist"}

OPTIMIZERS: tuple[str, ...] = ("sgd", "adam")
SCHEDULES: tuple[str, ...] = ("constant", "cosine")
DEVICES: tuple[str, ...] = ("auto", "cpu", "cuda")
# Those whose curvature `lobs.curvature` can collect.
LOSSES = ("cross_entropy", "mse")
