"""Training under Lightning, by a recipe, with the whole error curve."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.nn import functional

from lobs.base.distributed import rank_and_size, summed
from lobs.base.modes import without_training
from lobs_paper.data.splits import Split
from lobs_paper.progress import Lines, on_terminal
from lobs_paper.training.checkpoints import Checkpoints
from lobs_paper.training.datamodule import InMemoryData
from lobs_paper.training.evaluation import batch_size, wrong_answers


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        optimizer: ``sgd`` (with Nesterov's momentum where there is any) or ``adam`` (decoupled weight decay).
        learning_rate: at the start.
        momentum: of ``sgd``; ``adam`` uses its usual 0.9 and 0.999.
        weight_decay: L2 of ``sgd``, decoupled of ``adam``.
        schedule: ``constant``, or ``cosine`` down to zero over all iterations.
        batch_size: images per minibatch.
        iterations: minibatches in all.
        augment: ``none``, ``flip`` or ``crop_flip``: how images are varied at random.
    """

    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    batch_size: int
    iterations: int
    augment: str = "none"

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over some parameters."""
        if self.optimizer == "adam":
            return torch.optim.AdamW(parameters, self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters,
            self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )


class Classifier(pl.LightningModule):
    """A network that minimises the cross entropy by a recipe, with the labels or with a teacher's softmax.

    Args:
        network: to train.
        recipe: how.
        teacher: whose outputs take the labels' place; it is not changed.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.teacher = None if teacher is None else copy.deepcopy(teacher).requires_grad_(False)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The mean loss of a minibatch; of several processes' shares the part of it whose mean over them it is."""
        inputs, labels = batch
        outputs = self.network(inputs)
        if self.teacher is not None:
            with torch.no_grad(), without_training(self.teacher):
                labels = self.teacher(inputs).softmax(dim=1)
        size = rank_and_size()[1]
        if size == 1:
            return functional.cross_entropy(outputs, labels)
        # DDP averages the gradients, and shares may differ in size: weighted like this, the average is the minibatch's.
        answers = summed(torch.tensor(outputs[:, 0].numel(), device=outputs.device))
        return functional.cross_entropy(outputs, labels, reduction="sum") * size / answers

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer and, where it asks for one, a schedule that moves with every minibatch."""
        optimizer = self.recipe.build(self.network.parameters())
        if self.recipe.schedule == "constant":
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.recipe.iterations)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ErrorCurve(pl.Callback):
    """Measures the error every so many minibatches and keeps the whole curve, the start and the end included.

    Args:
        measured: the images to measure on.
        every: minibatches between two measurements.
    """

    def __init__(self, measured: Split, every: int) -> None:
        self._measured = measured
        self._every = every
        self._losses: list[Tensor] = []
        self.points: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, module: Classifier) -> None:  # type: ignore[override]
        """The error before the first step; a training that goes on has it."""
        if not self.points:
            self.measure(0, module.network)

    def state_dict(self) -> dict[str, Any]:
        """The curve so far."""
        return {"points": self.points, "losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a training that goes on."""
        self.points, self._losses = state_dict["points"], state_dict["losses"]

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, module: Classifier, outputs: Mapping[str, Tensor], *_: object
    ) -> None:
        """The error after this step, when it is due."""
        self._losses.append(outputs["loss"].detach())
        step = trainer.global_step
        if step % self._every == 0 or step == module.recipe.iterations:
            self.measure(step, module.network)

    def measure(self, iteration: int, network: nn.Module) -> None:
        """Add a point to the curve."""
        rank, size = rank_and_size()
        loss = float(summed(torch.stack(self._losses).mean()) / size) if self._losses else None
        self._losses = []
        share = self._measured.batches(batch_size(self._measured)).share(rank, size)
        wrong = float(summed(torch.tensor(wrong_answers(network, share)[0], dtype=torch.float64)))
        self.points.append(
            {
                "iteration": iteration,
                "train_loss": loss,
                "test_error_percent": 100 * wrong / len(self._measured),
            }
        )


class Bar(pl.Callback):
    """Progress over all iterations with the time that is left; Lightning's own bar knows one epoch at a time.

    Args:
        iterations: minibatches in all.
    """

    def __init__(self, iterations: int) -> None:
        from rich.progress import Progress

        self._progress = Progress(transient=True, disable=not on_terminal())
        self._task = self._progress.add_task("training", total=iterations)
        self._lines: Lines | None = None

    def on_train_start(self, trainer: pl.Trainer, *_: object) -> None:
        """The bar appears."""
        self._progress.start()
        if not on_terminal():
            self._lines = Lines("training", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """It moves."""
        self._progress.update(self._task, completed=trainer.global_step)
        if self._lines:
            self._lines.at(trainer.global_step)

    def on_train_end(self, *_: object) -> None:
        """It goes."""
        self._progress.stop()

    def on_exception(self, *_: object) -> None:
        """It goes."""
        self._progress.stop()


@dataclass(frozen=True)
class Fit:
    """What training leaves behind besides the network itself.

    Attributes:
        points: the curve: iteration, mean training loss since the point before, error in percent.
    """

    points: list[dict[str, Any]]

    @property
    def error_percent(self) -> float:
        """The error after the last iteration: no earlier point is ever chosen, least of all on test images."""
        return self.points[-1]["test_error_percent"]


@dataclass(frozen=True)
class Training:
    """What a network is trained on and how.

    Attributes:
        train: the images to learn from.
        measured: the images to measure the curve on; they influence nothing.
        recipe: optimizer, schedule, length.
        seed: of the order of the images and of everything random in the network.
        measure_every: minibatches between two points of the curve.
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        teacher: the network whose outputs are aimed at; None: the labels.
        folder: where a training that is stopped leaves what it goes on from; None: it starts anew.
    """

    train: Split
    measured: Split
    recipe: Recipe
    seed: int
    measure_every: int
    device: str = "auto"
    teacher: nn.Module | None = None
    folder: Path | None = None


def fit(
    network: nn.Module,
    training: Training,
    callbacks: Sequence[pl.Callback] = (),
) -> Fit:
    """Train a network in place.

    The same arguments give the same weights, byte for byte, on one machine. In every process of a process group
    (`lobs_paper.stages.devices`) this is DDP: each takes its share of every minibatch, and the weights are those of one
    process, to rounding, but for batch norm, which normalises each share by itself, and for dropout's draws.

    Args:
        network: is trained in place and comes back on the CPU.
        training: images and recipe.
        callbacks: that act before each measurement.

    Returns:
        The error curve.
    """
    recipe, seed = training.recipe, training.seed
    curve = ErrorCurve(training.measured, training.measure_every)
    if not recipe.iterations:
        curve.measure(0, network)
        return Fit(curve.points)
    rank, size = rank_and_size()
    kept = [Checkpoints(training.folder / "training.ckpt")] if training.folder else []
    with _quiet_lightning():
        pl.seed_everything(seed + rank, verbose=False)
        trainer = pl.Trainer(
            accelerator={"cuda": "gpu"}.get(training.device, training.device),
            devices=size,
            strategy="auto" if size == 1 else "ddp",
            plugins=[LightningEnvironment()],  # our processes are there already, whatever a cluster's variables say
            use_distributed_sampler=False,  # the data module shares the minibatches out
            max_epochs=-1,
            max_steps=recipe.iterations,
            deterministic=True,
            callbacks=[*callbacks, curve, Bar(recipe.iterations), *kept],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        # Convolutions are about 1.5 times as fast this way; filling fresh memory is for finding bugs, not for results.
        network.to(memory_format=torch.channels_last)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        data = InMemoryData(training.train, recipe.batch_size, seed, recipe.augment)
        stopped = kept[0].found if kept else None
        trainer.fit(
            Classifier(network, recipe, training.teacher), datamodule=data, ckpt_path=stopped, weights_only=True
        )
    network.cpu().to(memory_format=torch.contiguous_format)
    return Fit(curve.points)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning without its advertisements and without advice that does not fit data held in memory."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        try:
            yield
        finally:
            logger.setLevel(level)
