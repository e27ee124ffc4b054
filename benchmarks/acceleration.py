"""How much faster pruned networks run on a CPU, as they are, compacted and accelerated: reports/accelerate.{md,csv}.

    python benchmarks/acceleration.py [--runs runs --data data --output reports/accelerate.md]

Takes the first seed's dense networks under `--runs` (`<experiment>/seed<k>/train/model.safetensors`) and prunes them
itself; what is done with them says NOTE. Run it on an idle machine. openvino is measured where it is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from common import machine
from pandas import DataFrame
from torch import Tensor, nn

import lobs
from lobs.export.accelerate import race
from lobs_paper.data.splits import Split, load_training_data
from lobs_paper.files import load_tensors, write_table, write_text
from lobs_paper.networks.lenet5 import LeNet5
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.report.markdown import markdown

NETWORKS: dict[str, tuple[str, type[nn.Module]]] = {
    "lenet300": ("LeNet-300-100", LeNet300),
    "lenet5": ("LeNet-5", LeNet5),
}
# Without training: how fast a network is does not depend on its weights' values.
WIDE, WIDTH = "2048-2048-2048", 2048
DENSITIES, BATCHES = (0.07, 0.02), (1, 32, 256)
IMAGES = 2000
# What is run of an exported network beside the dense one.
EXPORTED = ("pruned", "compacted")
NOTE = """
Times faster than the same network with its zeros in place, which takes as long as the dense one: after `lobs.compact`,
and after `lobs.accelerate`, which compacts and then lets every layer's kernels race. Beside it the kernels that it
chose for the layers in the last repeat, in their order. onnxruntime and OpenVINO run the exported network
(`lobs.export_onnx`): with its zeros and compacted, in times faster than the dense network in the same runtime. Each
number is the median of {repeats} repeats with the smallest and the largest, each of medians of calls in turn: where
these lie far apart, the machine was busy. About 1 means: nothing helps.

The networks are pruned by `exact_obs`, `allocation="relative"`, without retraining; the wide one has random weights,
of which random ones are zero. float32 on a CPU with {machine}, torch {torch}, onnxruntime
{onnxruntime}{openvino}. Made by benchmarks/acceleration.py.
"""
NO_OPENVINO = ". OpenVINO was not installed"
OPENVINO = ", OpenVINO {version} with its sparse weights decompression asked for"
ABSENT = (
    "DeepSparse, a runtime made for sparse networks, is not measured: for Python 3.11 pip found no wheel of it, and "
    "its source did not build."
)


def main() -> None:
    """Measure all, print them and write the page, which grows row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of finished runs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("reports/accelerate.md"), help="with a CSV file beside it")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train, _ = load_training_data(options.data, "mnist")
    rows = []
    for title, density, dense, pruned, images in networks(options.runs, train):
        for batch in BATCHES:
            row = measured(dense, pruned, images[:batch], options.repeats)
            rows.append({"network": title, "density": density, "batch": batch, "threads": options.threads, **row})
            print(rows[-1], flush=True)
            table = DataFrame(rows)
            write_table(options.output.with_suffix(".csv"), table)
            write_text(options.output, page(table, options))


def networks(runs: Path, train: Split) -> Iterator[tuple[str, float, nn.Module, nn.Module, Tensor]]:
    """Title, density, the dense and the pruned network, and inputs."""
    part = train.part(0, IMAGES)
    images = next(iter(part.batches(max(BATCHES))))[0]
    for name, (title, kind) in NETWORKS.items():
        model = kind().eval()
        model.load_state_dict(load_tensors(runs / name / "seed0" / "train" / "model.safetensors", "lobs train"))
        statistics = lobs.collect_statistics(model, part.batches(max(BATCHES)))
        paths = lobs.layer_paths(model, statistics)
        for density in DENSITIES:
            result = lobs.prune(model, statistics, "exact_obs", density=density, allocation="relative", paths=paths)
            yield title, density, model, result.model, images
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).eval()
    inputs = torch.randn(max(BATCHES), WIDTH)
    for density in DENSITIES:
        pruned = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).eval()
        with torch.no_grad():
            for index in (0, 2):
                pruned[index].weight.mul_(torch.rand_like(pruned[index].weight) < density)
        yield WIDE, density, wide, pruned, inputs


def measured(dense: nn.Module, pruned: nn.Module, inputs: Tensor, repeats: int) -> dict[str, object]:
    """Ratios over the repeats: median, smallest and largest."""
    smaller = lobs.compact(pruned, inputs).model
    ratios: dict[str, list[float]] = {}
    for _ in range(repeats):
        found = lobs.accelerate(pruned, inputs)
        with torch.no_grad():
            runs = {"given": pruned, "compacted": smaller, "accelerated": found.model}
            times = race({name: partial(model, inputs) for name, model in runs.items()})
        for name in ("compacted", "accelerated"):
            ratios.setdefault(name, []).append(times["given"] / times[name])
    for runtime in RUNTIMES:
        with TemporaryDirectory() as folder:
            exported = {
                name: RUNTIMES[runtime](lobs.export_onnx(model, inputs, Path(folder) / f"{name}.onnx"), inputs)
                for name, model in {"dense": dense, "pruned": pruned, "compacted": smaller}.items()
            }
            for _ in range(repeats):
                times = race(exported)
                for name in EXPORTED:
                    ratios.setdefault(f"{runtime} {name}", []).append(times["dense"] / times[name])
    kernels = " / ".join(layer.kernel for layer in found.layers)
    numbers = {}
    for name, values in ratios.items():
        numbers |= {name: median(values), f"{name} least": min(values), f"{name} most": max(values)}
    return {"kernels": kernels, **numbers}


def in_onnxruntime(path: Path, inputs: Tensor) -> Callable[[], object]:
    """A function that runs an exported network in onnxruntime."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Threads of three sessions that wait by spinning would take the cores from each other.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    given = {"input": inputs.numpy()}
    return lambda: session.run(None, given)


def in_openvino(path: Path, inputs: Tensor) -> Callable[[], object]:
    """The same in OpenVINO."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(inputs.shape))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": "0.5",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    given = inputs.numpy()
    return lambda: request.infer([given], share_inputs=True)


RUNTIMES: dict[str, Callable[[Path, Tensor], Callable[[], object]]] = {"onnxruntime": in_onnxruntime}
if find_spec("openvino"):
    RUNTIMES["OpenVINO"] = in_openvino


def page(table: DataFrame, options: argparse.Namespace) -> str:
    """The table of all networks as Markdown."""
    openvino = NO_OPENVINO
    if "OpenVINO" in RUNTIMES:
        import openvino as package

        openvino = OPENVINO.format(version=package.__version__.split("-")[0])
    note = NOTE.format(
        repeats=options.repeats,
        machine=machine(),
        torch=torch.__version__.split("+")[0],
        onnxruntime=onnxruntime.__version__,
        openvino=openvino,
    )
    lines = ["# What pruned networks gain in speed", "", note.strip(), "", ABSENT, ""]
    for network, rows in table.groupby("network", sort=False):
        shown = DataFrame({"density": rows["density"].map("{:.0%}".format), "batch": rows["batch"].map(str)})
        for name in ("compacted", "accelerated", *(f"{each} {what}" for each in RUNTIMES for what in EXPORTED)):
            shown[name] = [
                f"{middle:.2f} ({least:.2f}-{most:.2f})"
                for middle, least, most in zip(*(rows[f"{name}{end}"] for end in ("", " least", " most")), strict=True)
            ]
            if name == "accelerated":
                shown["kernels"] = rows["kernels"]
        lines += [f"## {network}", "", markdown(shown, left=["kernels"]), ""]
    return "\n".join([*lines, "As [CSV](accelerate.csv). Back to the [summary](README.md)."]) + "\n"


if __name__ == "__main__":
    main()
