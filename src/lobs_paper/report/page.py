"""Writes every file of the report, and composes its first page.

README.md, the networks' pages and index.html follow from the metrics alone. The seconds and the memory of a run stand
apart, in timings.md, methods.md and storage.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lobs_paper.report import (
    comparison,
    costs,
    density,
    interactive,
    paper,
    side_pages,
    storage,
    summary,
    table2,
    tables,
)
from lobs_paper.report.drawing import Drawing
from lobs_paper.report.figures import draw_all
from lobs_paper.report.figures_hessian import draw_hessian
from lobs_paper.report.figures_largest import draw_largest
from lobs_paper.report.figures_memory import draw_memory
from lobs_paper.report.figures_overview import draw_overview
from lobs_paper.report.figures_solvers import draw_solvers
from lobs_paper.report.findings import findings
from lobs_paper.report.network_page import join, network_page
from lobs_paper.report.output import write_csv, write_text
from lobs_paper.report.results import Experiment
from lobs_paper.report.stale import MANIFEST, remove_stale

# Pages that benchmarks/ writes, not the report stage.
BENCHMARKS = {
    "solvers.md": "layer error and seconds of every solver",
    "speed.txt": "exact OBS and statistics against their floors",
    "large_layer.txt": "VGG-16's first classifier",
    "imagenet_shapes.md": "VGG-16 and ResNet-50 from calibration to pruned network",
    "allocation.md": "ways of sharing a budget out between layers, on held-out training images",
}
# What a reader must know of data that is not what its name suggests.
DATA_NOTES = {
    "CIFAR-10 (JPEG)": "CIFAR-10 from a JPEG re-encoding, whose loss a network can see: its errors are not CIFAR-10's.",
    "ImageNet sample": "1,000 ImageNet photographs, one per class: enough to compare a network before and after "
    "pruning, not to quote an accuracy on ImageNet.",
}
_LINKS = {
    "README.md": "Summary",
    "table1.md": "Table 1 in full",
    "figures.md": "More figures",
    "methods.md": "Seconds and memory",
    "storage.md": "Bytes and milliseconds",
}
_HOW_TO_READ = (
    "Written by the report stage from the metrics files of the runs; do not edit. Errors are test errors in percent. "
    "Density: share of the weights kept, the paper's CR. With several seeds: mean ± sample standard deviation."
)
_SOURCES = (
    "±: ours less the paper's, in points. Source of the paper's figures: r, recalled from the published tables and not "
    "verified; v, one of them found in a second public source (which one: [Table 1](table1.md)). A dash: not published "
    "or not measured. ImageNet errors are top-1."
)


def write_pages(experiments: Sequence[Experiment], reports_dir: Path) -> list[Path]:
    """Write the whole report, and remove what an earlier one wrote and this one did not.

    Args:
        experiments: what was measured.
        reports_dir: folder to write into; created when it is missing.

    Returns:
        The files written, README.md first.
    """
    drawings = {experiment.name: draw_all(experiment) for experiment in experiments}
    overview = draw_overview(experiments)
    shared = [draw_hessian(reports_dir), draw_largest(experiments), draw_memory(reports_dir), draw_solvers(reports_dir)]
    common = [drawing for drawing in shared if drawing]
    pages = {
        "README.md": readme(experiments, overview, common, reports_dir),
        "figures.md": side_pages.figures_page(common),
        **{page_of(entry): network_page(entry, drawings[entry.name]) for entry in experiments},
        "table1.md": side_pages.table1_page(experiments),
        **{f"{paper.layers_stem(entry.name)}.md": side_pages.layers_page(entry) for entry in experiments},
        "methods.md": side_pages.methods_page(experiments),
        "timings.md": side_pages.timings_page(experiments),
        "storage.md": side_pages.storage_page(experiments),
    }
    if table2.records(experiments):
        pages["table2.md"] = side_pages.table2_page(experiments)
    links = {**_LINKS, **{page_of(entry): summary.title(entry) for entry in experiments}}
    pages[interactive.NAME] = interactive.index_page(experiments, links)
    paths = [write_text(reports_dir / name, text) for name, text in pages.items()]
    paths += [write_csv(reports_dir / f"{name}.csv", *entry) for name, entry in _records(experiments).items()]
    for drawing in (*(drawing for entries in drawings.values() for drawing in entries), overview, *common):
        if drawing:
            paths += drawing.write(reports_dir)
    remove_stale(reports_dir, paths)
    return [*paths, reports_dir / MANIFEST]


def _records(experiments: Sequence[Experiment]) -> dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]]:
    """The tables in full precision, with their columns, by the names of their files."""
    records = {
        "table1": (tables.table1_records(experiments), tables.TABLE1_COLUMNS),
        "density": (density.records(experiments), density.COLUMNS),
        "layers": (tables.layer_records(experiments), tables.LAYER_COLUMNS),
        "bound": (tables.bound_records(experiments), tables.BOUND_COLUMNS),
        "retraining": (tables.retraining_records(experiments), tables.RETRAINING_COLUMNS),
        "methods": (costs.method_records(experiments), costs.METHOD_COLUMNS),
        "timings": (tables.timing_records(experiments), tables.TIMING_COLUMNS),
        "storage": (storage.storage_records(experiments), storage.STORAGE_COLUMNS),
        "latency": (storage.latency_records(experiments), storage.LATENCY_COLUMNS),
    }
    for entry in experiments:
        records[paper.layers_stem(entry.name)] = (tables.layer_records([entry]), tables.LAYER_COLUMNS)
    compared = table2.records(experiments)
    return {**records, "table2": (compared, table2.COLUMNS)} if compared else records


def page_of(experiment: Experiment) -> str:
    """Give the name of a network's page."""
    return f"{experiment.name}.md"


def readme(
    experiments: Sequence[Experiment], overview: Drawing | None, common: Sequence[Drawing], reports_dir: Path
) -> str:
    """Compose the first page.

    Args:
        experiments: what was measured.
        overview: the picture at the top.
        common: figures that belong to no single network.
        reports_dir: where benchmarks may have left pages.

    Returns:
        Markdown: what was run, what came out, Table 1 in short, and links to everything else.
    """
    lines = summary.lines(experiments)
    parts = ["# Results", f"**[Interactive page](index.html)** (open it from disk). {_HOW_TO_READ}"]
    if overview:
        parts += [f"![{overview.title}]({overview.stem}.svg)", overview.caption]
    parts += ["## What was run", _bullets(_what_was_run(experiments))]
    parts += ["## What came out", _bullets(findings(experiments, lines)), summary.table(lines).markdown()]
    parts += [
        _SOURCES,
        comparison.RULES,
        "## Where to find what",
        _bullets(_contents(experiments, common, reports_dir)),
    ]
    return join(parts)


def _what_was_run(experiments: Sequence[Experiment]) -> list[str]:
    texts = summary.what_was_run(experiments)
    texts += [f"{name}: {note}" for name, note in DATA_NOTES.items() if name in map(summary.data_of, experiments)]
    machine = summary.machine(experiments)
    if machine:
        texts.append(f"Machine: {machine}; seconds and memory of every method: [methods.md](methods.md).")
    return texts


def _contents(experiments: Sequence[Experiment], common: Sequence[Drawing], reports_dir: Path) -> list[str]:
    """A line of links per network, one to the tables and figures over all of them, one to the benchmarks' pages."""
    texts = [
        f"**{summary.title(entry)}**: [page]({page_of(entry)}) with every figure and reason, "
        f"[{_layers_name(entry)}]({paper.layers_stem(entry.name)}.md)"
        for entry in experiments
    ]
    second = ", [Table 2](table2.md): Net-Trim against L-OBS" if table2.records(experiments) else ""
    texts.append(
        f"All networks: [Table 1 in full](table1.md){second}, [seconds and memory](methods.md), [stages](timings.md), "
        "[bytes and milliseconds](storage.md)"
    )
    titles = [drawing.title for drawing in common]
    texts += [f"[More figures](figures.md): {'; '.join(titles)}"] if titles else []
    names = ("table1", "density", "layers", "bound", "retraining", "methods", "timings", "storage", "latency")
    texts.append(f"As CSV: {', '.join(f'[{name}]({name}.csv)' for name in names)}")
    links = [f"[{title}]({name})" for name, title in BENCHMARKS.items() if (reports_dir / name).exists()]
    return [*texts, f"Benchmarks: {', '.join(links)}"] if links else texts


def _layers_name(experiment: Experiment) -> str:
    number = paper.LAYER_TABLES.get(experiment.name)
    return f"Table {number}: its layers" if number else "its layers"


def _bullets(texts: Sequence[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
