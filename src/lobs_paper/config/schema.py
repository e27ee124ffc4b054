"""The configuration's schema: every key with its type, its range and, in words, what it accepts. Declared here alone.

Hydra composes conf/ into these classes by their types; pydantic checks ranges and names (`lobs_paper.config.checks`).
Nothing here imports torch, so that a mistake is reported at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, GetCoreSchemaHandler

from lobs.registry import ALLOCATIONS, CORRECTIONS, METHODS
from lobs_paper.config.choices import AUGMENTATIONS, DEVICES, LOSSES, OPTIMIZERS, SCHEDULES, TARGETS, THRESHOLDS


@dataclass(frozen=True)
class CheckedAs:
    """What pydantic checks in the place of a type that is as near as OmegaConf's types come to it."""

    kind: Any
    description: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """The schema of `kind`, whatever stands beside it in ``Annotated``."""
        return handler.generate_schema(self.kind)


def _one_of(names: Iterable[str]) -> CheckedAs:
    return CheckedAs(Literal[tuple(names)], f"one of {', '.join(names)}")


def _number(words: str, **limits: float) -> Any:
    options: dict[str, Any] = {"strict": True, "allow_inf_nan": False, **limits}
    return Field(description=words, **options)


def _whole(words: str, least: int, most: int | None = None) -> Any:
    return Field(description=words, strict=True, ge=least, le=most)


def _text(words: str) -> Any:
    return Field(description=words)


def _rising(pair: list[float]) -> list[float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError
    return pair


def _part(text: str) -> str:
    number, of = map(int, text.split("/"))
    if not 1 <= number <= of:
        raise ValueError
    return text


Share: TypeAlias = Annotated[float, _number("the share of weights kept, a number from 0 to 1", ge=0, le=1)]
AboveZero: TypeAlias = Annotated[float, _number("a number above 0", gt=0)]
AtLeastZero: TypeAlias = Annotated[float, _number("a number, 0 or more", ge=0)]
Count: TypeAlias = Annotated[int, _whole("a whole number, 1 or more", 1)]
Pixels: TypeAlias = Annotated[int, _whole("a whole number of pixels, 1 to 16384", 1, 2**14)]
Pair: TypeAlias = Annotated[list[Share], Field(min_length=2, max_length=2)]
Name: TypeAlias = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][\w.-]*$",
        description="a name of letters, digits, '_', '-' and '.', since it becomes a folder",
    ),
]
Flag: TypeAlias = Annotated[bool, Field(strict=True, description="true or false")]
Folder: TypeAlias = Annotated[str, Field(min_length=1, description="a folder")]
LayerNames: TypeAlias = Annotated[list[str], _text("a list of layer names or patterns")]
Densities: TypeAlias = Annotated[list[Share], _text("a list of densities")]
Settings: TypeAlias = Annotated[dict[str, Any], _text("a mapping of names to values")]
Solver: TypeAlias = Annotated[str, _one_of(METHODS)]
Allocation: TypeAlias = Annotated[str, _one_of({**ALLOCATIONS, **THRESHOLDS})]
Correction: TypeAlias = Annotated[str, _one_of(CORRECTIONS)]
Optimizer: TypeAlias = Annotated[str, _one_of(OPTIMIZERS)]
Schedule: TypeAlias = Annotated[str, _one_of(SCHEDULES)]
Augmentation: TypeAlias = Annotated[str, _one_of(AUGMENTATIONS)]
Stages: TypeAlias = Annotated[
    Any, CheckedAs(Count | list[Share], "how many stages, or the densities before the last one, falling")
]
Refit: TypeAlias = Annotated[Any, CheckedAs(Flag | Count, "true, false or a number of minibatches, 1 or more")]
# One value for all layers, or one per layer or pattern.
ThresholdScale: TypeAlias = Annotated[
    Any, CheckedAs(AboveZero | dict[str, AboveZero], "a number above 0, or numbers by layer name or pattern")
]
Limits: TypeAlias = Annotated[
    dict[str, Any],
    CheckedAs(dict[str, Pair], "[least, most] density by layer name or pattern, such as {fc3: [0.05, 1.0]}"),
]


class Section:
    """A class of the schema; keys that it does not declare are refused."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass
class Data(Section):
    """Group `data`; `_target_` is for data sets that `lobs_paper.config.choices.DATASETS` does not list."""

    name: Name
    _target_: Annotated[str, _text("package.module.name of a function or class that fetches the data set")] | None = (
        None
    )
    holdout: Annotated[int, _whole("a whole number of training images, 0 or more", 0)] = 0
    root: Annotated[str, Field(min_length=1, description="a folder or an archive")] | None = None
    mean: Annotated[
        list[Annotated[float, _number("")]], _text("a list of numbers: one per channel, one for all, or none")
    ] = field(default_factory=list)
    std: Annotated[list[AboveZero], _text("a list of numbers above 0: one per channel, one for all, or none")] = field(
        default_factory=list
    )
    resize: Pixels | None = None
    size: Pixels | None = None
    crop_scale: Annotated[
        Pair, AfterValidator(_rising), _text("[least, most] share of a picture's area, above 0 up to 1")
    ] = field(default_factory=lambda: [0.35, 1.0])


@dataclass
class Recipe(Section):
    """What training and retraining have in common."""

    optimizer: Optimizer
    learning_rate: AboveZero
    momentum: Annotated[float, _number("a number from 0 to below 1", ge=0, lt=1)]
    weight_decay: AtLeastZero
    schedule: Schedule
    batch_size: Count


@dataclass
class Train(Recipe):
    """Group `train`: the recipe of the dense network."""

    epochs: Count
    augment: Augmentation = "none"


@dataclass
class Retrain(Recipe):
    """Group `retrain`: the recipe of the pruned network; `method.retrain` overrides parts of it."""

    iterations: Annotated[int, _whole("a whole number, 0 (measure only) or more", 0)]
    measure_every: Count
    augment: Augmentation = "none"
    targets: Annotated[str, _one_of(TARGETS)] = "labels"


@dataclass
class Collect(Section):
    """Key `collect`: the calibration pass."""

    batch_size: Count
    images: Count | None
    images_per_pass: Count | None
    loss: Annotated[str, _one_of(LOSSES)] | None
    kept_samples: Annotated[int, _whole("a whole number of input vectors per layer, 0 or more", 0)]
    augmented_copies: Count = 1


@dataclass
class Method(Section):
    """Group `method`: a solver, its options, and how it is applied.

    `threshold_scale` and `surgery` (`Surgery`) are read where thresholds decide between the layers (`THRESHOLDS`);
    `retrain` holds keys of `Retrain`; `images` is how many calibration images a method that compares networks or refits
    takes, null: all of `collect.images`.
    """

    name: Name
    solver: Solver
    options: Settings = field(default_factory=dict)
    allocation: Allocation = "global"
    rounds: Densities | None = None
    retrain: Settings = field(default_factory=dict)
    limits: Limits = field(default_factory=dict)
    exclude: LayerNames = field(default_factory=list)
    sequential: Flag = False
    stages: Stages = 1
    correct: Correction = "none"
    refit: Refit = False
    images: Count | None = None
    threshold_scale: ThresholdScale = 1.0
    surgery: Settings = field(default_factory=dict)


@dataclass
class Surgery(Section):
    """Key `method.surgery`: dynamic network surgery."""

    gamma: AtLeastZero
    power: AtLeastZero
    stop: Count


@dataclass
class Tuned(Section):
    """What an experiment may set for a single method, `methods.<name>`; checked as a whole once it is in `method`."""

    density: Share
    options: Any
    allocation: Any
    limits: Any
    exclude: Any
    sequential: Any
    stages: Any
    correct: Any
    refit: Any
    images: Any
    rounds: Any
    retrain: Any
    threshold_scale: Any
    surgery: Any


@dataclass
class FolderNames(Section):
    """Key `folders`, relative to the working directory."""

    data: Folder
    runs: Folder
    further_runs: Annotated[list[Annotated[str, Field(min_length=1)]], _text("a list of folders, [] for none")]
    reports: Folder
    mlflow: Folder
    output: Folder | None


@dataclass
class Track(Section):
    """Key `track`: the MLflow view."""

    models: Flag


@dataclass
class Config(Section):
    """The whole configuration."""

    name: Name
    seed: Annotated[int, _whole("a whole number from 0 to 4294967295", 0, 2**32 - 1)]
    density: Share | None
    tolerance: Annotated[float, _number("the tolerable error per layer, a number, 0 or more", ge=0)] | None
    flops: Annotated[float, _number("the share of multiply-adds kept, a number from 0 to 1", ge=0, le=1)] | None
    size: Annotated[int, _whole("the bytes of the sparse file, a whole number", 0)] | None
    exclude: LayerNames
    methods: Settings
    part: Annotated[str, AfterValidator(_part), _text("2/4 for the second of four parts")]
    density_grid: Annotated[list[Share], Field(min_length=1, description="a list of densities")] | None
    device: Annotated[str, _one_of(DEVICES)]
    devices: Annotated[int, _whole("a whole number of processes, 1 to 64", 1, 64)]
    threads: Annotated[int, _whole("a whole number, 1 to 1024", 1, 1024)]
    memory: Annotated[float, _number("a ceiling in GiB, a number above 0", gt=0)] | None
    model: Settings
    data: Data
    train: Train
    collect: Collect
    method: Method
    retrain: Retrain
    folders: FolderNames
    track: Track


# Mappings whose keys a command line may add to; what may stand in them is checked by `lobs_paper.config.checks`.
OPEN_KEYS = (
    "model.weights",
    "model.output",
    "method.limits.",
    "method.options.",
    "method.retrain.",
    "method.threshold_scale.",
    "method.surgery.",
    "methods.",
)
