"""The paper's published figures, with their provenance.

Dong, Chen, Pan: Learning to Prune Deep Neural Networks via Layer-wise Optimal Brain Surgeon, NIPS 2017,
arXiv 1705.07565, Tables 1 and 2. A figure was recalled from the published table unless `verified` names its column,
which means that it was found in a second public source. They are shown beside ours and never serve as a test's
expectation.
The paper's "CR" is the share of weights that is kept; here it is called density.
"""

from __future__ import annotations

from dataclasses import dataclass

RECALLED = "paper (recalled)"
VERIFIED = "paper (verified)"
UNSURE = "paper (recalled, low confidence)"

# The paper's damping is 1/alpha, added to the diagonal of the inputs' second moment: at most this much.
LARGEST_DAMPING = 1e-4


@dataclass(frozen=True)
class PaperRow:
    """One row of Table 1; errors and densities in percent, None where the paper prints a dash.

    Attributes:
        experiment: our experiment of the same network and data.
        method: the paper's method, under our name for it.
        label: the paper's name of the method.
        original: test error of the dense network.
        density: share of weights kept ("CR").
        after_pruning: test error without retraining.
        after_retraining: test error after retraining.
        iterations: iterations of retraining.
        verified: columns whose figure was found in a second public source; all others are recalled.
        top5: the three errors' counterparts among the five largest outputs (ImageNet); the errors are then top-1.
    """

    experiment: str
    method: str
    label: str
    original: float
    density: float
    after_pruning: float | None
    after_retraining: float
    iterations: float
    verified: tuple[str, ...] = ()
    top5: tuple[float, float | None, float] | None = None

    @property
    def source(self) -> str:
        """Where the figures come from, as printed in the report."""
        if not self.verified:
            return RECALLED
        columns = ", ".join(column.replace("_", " ") for column in self.verified)
        return f"{RECALLED}; {columns}: {VERIFIED}"


# Experiment name -> what the network is called, in the paper where it has it.
NETWORKS: dict[str, str] = {
    "lenet300": "LeNet-300-100",
    "lenet5": "LeNet-5",
    "cifarnet": "CIFAR-Net",
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "resnet50": "ResNet-50",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "mlpnet": "MLPNet",
    "resnet20": "ResNet-20",
    "vit": "ViT",
}
# Experiment name -> the data that the paper uses.
DATA: dict[str, str] = {
    "lenet300": "MNIST",
    "lenet5": "MNIST",
    "cifarnet": "CIFAR-10",
    "alexnet": "ImageNet",
    "vgg16": "ImageNet",
    "resnet50": "ImageNet",
}


def network_of(experiment: str) -> str:
    """Give the network's name, the experiment's own where it has no other."""
    return NETWORKS.get(experiment, experiment)


def paper_order(experiment: str) -> int:
    """Give an experiment's place among `NETWORKS`; behind all of them where it is none."""
    return list(NETWORKS).index(experiment) if experiment in NETWORKS else len(NETWORKS)


# Figure number -> the experiment that the paper draws in it. Figure 5's network is not known to us.
FIGURE_NETWORK: dict[int, str] = {2: "lenet300", 3: "lenet300", 4: "lenet5", 5: "lenet300"}


def figure_stem(number: int, experiment: str) -> str:
    """Give the name of a figure's files; experiments other than the one that the paper draws are named in it."""
    return f"figure{number}" if FIGURE_NETWORK[number] == experiment else f"figure{number}-{experiment}"


# Experiment name -> the number of the table with its layers; further networks have tables without a number.
LAYER_TABLES: dict[str, int] = {"lenet300": 3, "lenet5": 4, "cifarnet": 5}


def layers_stem(experiment: str) -> str:
    """Give the name of the files of a network's layers."""
    number = LAYER_TABLES.get(experiment)
    return f"table{number}" if number else f"layers-{experiment}"


TABLE1: tuple[PaperRow, ...] = (
    PaperRow("lenet300", "random", "Random", 1.76, 8, 85.72, 2.25, 3.50e5),
    PaperRow("lenet300", "obd", "OBD", 1.76, 8, 86.72, 1.96, 8.10e4),
    PaperRow("lenet300", "lwc", "LWC", 1.76, 8, 81.32, 1.95, 1.40e5),
    PaperRow("lenet300", "dns", "DNS", 1.76, 1.8, None, 1.99, 3.40e4),
    PaperRow("lenet300", "lobs", "L-OBS", 1.76, 7, 3.10, 1.82, 510),
    PaperRow("lenet300", "lobs_iterative", "L-OBS iterative", 1.76, 1.5, 2.43, 1.96, 643),
    PaperRow("lenet5", "obd", "OBD", 1.27, 8, 86.72, 2.65, 2.90e5),
    PaperRow("lenet5", "lwc", "LWC", 1.27, 8, 89.55, 1.36, 9.60e4),
    PaperRow("lenet5", "dns", "DNS", 1.27, 0.9, None, 1.36, 4.70e4),
    PaperRow("lenet5", "lobs", "L-OBS", 1.27, 7, 3.21, 1.27, 740, verified=("iterations",)),
    PaperRow("lenet5", "lobs_iterative", "L-OBS iterative", 1.27, 0.9, 2.04, 1.66, 841),
    PaperRow("cifarnet", "lwc", "LWC", 18.57, 9, 87.65, 19.36, 1.62e5),
    PaperRow("cifarnet", "lobs", "L-OBS", 18.57, 9, 21.32, 18.76, 1020),
    PaperRow("alexnet", "dns", "DNS", 43.30, 5.7, None, 43.91, 7.30e5, top5=(20.08, None, 20.72)),
    PaperRow("alexnet", "lwc", "LWC", 43.30, 11, 76.14, 44.06, 5.04e6, top5=(20.08, 57.68, 20.64)),
    PaperRow(
        *("alexnet", "lobs", "L-OBS", 43.30, 11, 50.04, 43.11, 1.81e4),
        verified=("after_pruning",),
        top5=(20.08, 26.87, 20.01),
    ),
    PaperRow("vgg16", "lwc", "LWC", 31.66, 7.5, 73.61, 32.43, 2.35e7, top5=(10.12, 52.64, 11.12)),
    PaperRow(
        *("vgg16", "lobs_iterative", "L-OBS iterative", 31.66, 7.5, 37.32, 32.02, 8.63e4), top5=(10.12, 14.82, 10.97)
    ),
)


@dataclass(frozen=True)
class Table2Row:
    """One row of Table 2, Net-Trim against L-OBS; in percent, None where the paper has no such row."""

    method: str
    density: float | None
    after_pruning: float | None
    source: str = UNSURE


TABLE2_EXPERIMENT = "lenet300"
TABLE2: tuple[Table2Row, ...] = (
    Table2Row("net_trim", 7.4, 28.45),
    Table2Row("lobs", 7.4, 4.56),
)

# Our methods that stand for one of the paper's beside the one of its name: LWC's criterion in one shot.
_PAPER_METHOD = {"magnitude": "lwc"}


def paper_method(method: str) -> str:
    """Give the name under which TABLE1 lists one of our methods: its own, or that of what it stands for."""
    return _PAPER_METHOD.get(method, method)
