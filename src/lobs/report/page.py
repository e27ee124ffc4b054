"""Composes the report's Markdown pages and writes every file of the report.

README.md and all it shows follow from the metrics alone. The seconds and the memory of a run stand apart, in timings.md
and methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lobs.report import comparison, costs, density, interactive, reasons, summary, table2, tables
from lobs.report.drawing import Drawing
from lobs.report.figures import draw_all
from lobs.report.figures_memory import draw_memory
from lobs.report.methods import style_of
from lobs.report.output import write_csv, write_text
from lobs.report.paper import RECALLED, VERIFIED
from lobs.report.remarks import remarks
from lobs.report.results import Experiment
from lobs.report.selection import label_of, samples_note
from lobs.report.stale import MANIFEST, remove_stale
from lobs.report.statistic import fixed, over_seeds, whole

# Pages that benchmarks/ writes, not the report stage.
BENCHMARKS = {
    "solvers.md": "layer error and seconds of every solver",
    "speed.txt": "exact OBS and statistics against their floors",
    "large_layer.txt": "VGG-16's first classifier",
    "allocation.md": "ways of sharing a budget out between layers, on held-out training images",
}

# What the interactive page links to.
_LINKS = {"README.md": "Summary", "table1.md": "Table 1", "layers.md": "Layers", "methods.md": "Seconds and memory"}

_PROVENANCE = (
    f'Figures marked "{RECALLED}" are recalled from the published tables and not verified; "{VERIFIED}" means found in '
    "a second public source. A dash: not published, or not measured here. The settings of our rows, each with its "
    "source, are in `conf/method/`: L-OBS damps its inverse more than the paper says it does, and L-OBS, OBD and "
    "magnitude share one budget out between the layers by the same automatic rule."
)
_DENSITY = (
    "The whole network, cut from dense to each density at once by the method's own criterion and its own way of "
    "sharing the budget out between the layers; of an iterative method, too, this is one cut. Test error in percent at "
    f"the share of weights kept, within {density.NEAR:.0%} of it. A dash: not measured there. As [CSV](density.csv), "
    "with the distance of the outputs."
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
    memory = draw_memory(reports_dir)
    pages = {
        "README.md": readme(experiments, drawings, memory, _benchmarks(reports_dir)),
        "table1.md": table1_page(experiments),
        "layers.md": layers_page(experiments),
        "methods.md": methods_page(experiments),
        "timings.md": timings_page(experiments),
    }
    records = {
        "table1": (tables.table1_records(experiments), tables.TABLE1_COLUMNS),
        "density": (density.records(experiments), density.COLUMNS),
        "layers": (tables.layer_records(experiments), tables.LAYER_COLUMNS),
        "bound": (tables.bound_records(experiments), tables.BOUND_COLUMNS),
        "retraining": (tables.retraining_records(experiments), tables.RETRAINING_COLUMNS),
        "methods": (costs.method_records(experiments), costs.METHOD_COLUMNS),
        "timings": (tables.timing_records(experiments), tables.TIMING_COLUMNS),
    }
    compared = table2.records(experiments)
    if compared:
        pages["table2.md"] = table2_page(experiments)
        records["table2"] = (compared, table2.COLUMNS)
    pages[interactive.NAME] = interactive.index_page(experiments, _LINKS)
    paths = [write_text(reports_dir / name, text) for name, text in pages.items()]
    paths += [write_csv(reports_dir / f"{name}.csv", *entry) for name, entry in records.items()]
    for drawing in (*(drawing for entries in drawings.values() for drawing in entries), memory):
        if drawing:
            paths += drawing.write(reports_dir)
    remove_stale(reports_dir, paths)
    return [*paths, reports_dir / MANIFEST]


def _benchmarks(reports_dir: Path) -> str:
    """A sentence with links to the pages that benchmarks have written into the same folder; empty without any."""
    links = [f"[{title}]({name})" for name, title in BENCHMARKS.items() if (reports_dir / name).exists()]
    return f" From the benchmarks: {', '.join(links)}." if links else ""


def readme(
    experiments: Sequence[Experiment],
    drawings: dict[str, list[Drawing]],
    memory: Drawing | None = None,
    benchmarks: str = "",
) -> str:
    """Compose the main page.

    Args:
        experiments: what was measured.
        drawings: the figures of each, by its name.
        memory: the figure of the memory benchmark.
        benchmarks: a sentence with links to the benchmarks' pages.

    Returns:
        Markdown: per experiment the tables, why figures differ, the drawings, layers, bound and retraining.
    """
    second = "Table 2 ([page](table2.md), [CSV](table2.csv)), " if table2.records(experiments) else ""
    parts = [
        "# Results",
        "Written by the report stage from the metrics files of the runs; do not edit. Errors are test errors. "
        "Density is the share of weights kept (the paper's CR). With several seeds: mean ± sample standard deviation.",
        f"Files: Table 1 ([page](table1.md), [CSV](table1.csv)), {second}[methods with seconds and memory]"
        "(methods.md), [without retraining](density.csv), layers ([page](layers.md), [CSV](layers.csv)), "
        "[bound](bound.csv), [retraining](retraining.csv), [every stage's seconds and memory](timings.md)."
        + benchmarks,
    ]
    for experiment in experiments:
        parts += [f"## {title_of(experiment)}", _dense_network(experiment)]
        parts += ["### Table 1", tables.table1(experiment).markdown(), *remarks(experiment)]
        parts += [comparison.RULES, _PROVENANCE]
        parts += _reasons(experiment) + _spread(experiment) + _table2(experiment) + _without_retraining(experiment)
        for drawing in drawings[experiment.name]:
            parts += _figure(drawing)
        parts += _layers(experiment) + _bound(experiment) + _retraining(experiment)
    return _page([*parts, *(_figure(memory, "##") if memory else [])])


def table1_page(experiments: Sequence[Experiment]) -> str:
    """Compose Table 1 over all experiments."""
    parts = ["# Table 1"]
    for experiment in experiments:
        parts += [f"## {title_of(experiment)}", tables.table1(experiment).markdown()]
    return _page([*parts, comparison.RULES, _PROVENANCE])


def table2_page(experiments: Sequence[Experiment]) -> str:
    """Compose Table 2."""
    parts = ["# Table 2: Net-Trim against L-OBS"]
    for experiment in experiments:
        body = _table2(experiment)
        parts += [f"## {title_of(experiment)}", *body[1:]] if body else []
    return _page([*parts, "As [CSV](table2.csv). Back to the [results](README.md)."])


def methods_page(experiments: Sequence[Experiment]) -> str:
    """Compose errors, seconds and peak memory of every method."""
    parts = [
        "# Methods: errors, seconds and memory",
        "Errors are test errors, densities and errors those of the final network; with several seeds: mean ± sample "
        "standard deviation. Seconds are wall time and peaks those of a whole process, the libraries it loads "
        "included, as measured in the latest run of each stage.",
    ]
    for experiment in experiments:
        seconds, memory = costs.collect_costs(experiment)
        shared = f"Before all of them: collecting the statistics, {fixed(seconds, 1)} s, peak {whole(memory)} MiB."
        parts += [f"## {title_of(experiment)}", costs.method_table(experiment).markdown(), shared]
    return _page([*parts, "As [CSV](methods.csv); [every stage](timings.md). Back to the [results](README.md)."])


def layers_page(experiments: Sequence[Experiment]) -> str:
    """Compose every layer of every method."""
    parts = [
        "# Layers",
        "Right after the first pruning, before any retraining. E: squared change of the layer's pre-activations, "
        "summed over units, mean over samples (of a convolution: positions in its output); relative E: as a share of "
        "their mean square. Threshold: the largest sensitivity among the removed weights. Bound term: what the layer "
        "adds to Theorem 3.2's bound. Damping: added to the diagonal before the inverse was taken.",
    ]
    for experiment in experiments:
        note = _in_sequence(experiment).strip()
        parts += [f"## {title_of(experiment)}", *([note] if note else [])]
        for runs in experiment.methods:
            table = tables.layer_table(runs)
            parts += [f"### {label_of(runs)}", table.markdown() if table.rows else "-"]
    return _page([*parts, "As [CSV](layers.csv). Back to the [results](README.md)."])


def timings_page(experiments: Sequence[Experiment]) -> str:
    """Compose seconds and peak memory; the page that, with the methods', differs between identical runs."""
    parts = ["# Seconds and memory", "Wall time and peak memory of every stage as measured in the latest run."]
    for experiment in experiments:
        parts += [f"## {title_of(experiment)}", tables.timing_table(experiment).markdown()]
    return _page([*parts, "As [CSV](timings.csv). Back to the [results](README.md)."])


def title_of(experiment: Experiment) -> str:
    """Give an experiment's heading: network, data and its own name."""
    title = summary.title(experiment)
    return f"`{experiment.name}`" if title == experiment.name else f"{title} (`{experiment.name}`)"


def _dense_network(experiment: Experiment) -> str:
    trains = list(experiment.trains.values())
    test = fixed(over_seeds(train.test_error_percent for train in trains))
    train = fixed(over_seeds(train.train_error_percent for train in trains))
    parameters = whole(over_seeds(train.parameters for train in trains))
    seeds = ", ".join(map(str, experiment.trains)) or "-"
    text = f"Dense network: {parameters} parameters, test error {test}%, training error {train}%; seeds: {seeds}."
    others = sorted({train.measured_on for train in trains} - {"test"})
    return f"{text} All errors were measured on {', '.join(others)} images, not on the test set." if others else text


def _reasons(experiment: Experiment) -> list[str]:
    found = reasons.paragraphs(experiment)
    if not found:
        return []
    text = (
        "Better, reproduced and worse by the rules above. A reason is what we think, not what the paper says; its "
        "numbers are measured."
    )
    return ["### Where and why our figures differ from the paper's", text, "\n".join(found)]


def _spread(experiment: Experiment) -> list[str]:
    table = tables.spread_table(experiment)
    return ["### Spread over the seeds", table.markdown()] if table.rows else []


def _table2(experiment: Experiment) -> list[str]:
    table = table2.table(experiment)
    if not table.rows:
        return []
    parts = ["### Table 2: Net-Trim against L-OBS", table.markdown(), table2.finding(experiment), table2.CAPTION]
    return [part for part in parts if part]


def _figure(drawing: Drawing, level: str = "###") -> list[str]:
    return [
        f"{level} {drawing.title}",
        f"![{drawing.title}]({drawing.stem}.svg)",
        f"{drawing.caption} Also as [PNG]({drawing.stem}.png) and [CSV]({drawing.stem}.csv).",
    ]


def _without_retraining(experiment: Experiment) -> list[str]:
    table = density.table(experiment)
    return ["### Without retraining", table.markdown(), _DENSITY] if table.rows else []


def _layers(experiment: Experiment) -> list[str]:
    """The layers' densities and errors; in full on their own page."""
    table = tables.layers_table(experiment)
    if not table.rows:
        return []
    text = (
        "Right after the first pruning, before any retraining; means over the seeds. E: squared change of the layer's "
        f"pre-activations, {samples_note(experiment)}; relative E: as a share of their mean square."
        f"{_in_sequence(experiment)} [In full](layers.md)."
    )
    return ["### Layers", table.markdown(), text]


def _in_sequence(experiment: Experiment) -> str:
    """A sentence on the methods whose E means something else; empty without any."""
    labels = [label_of(runs) for runs in experiment.methods if style_of(runs.method).in_sequence]
    if not labels:
        return ""
    return (
        f" E of {' and of '.join(labels)} is measured on the inputs that the pruned layers before leave, so that it "
        "counts what those have lost; of all others on the dense network's."
    )


def _bound(experiment: Experiment) -> list[str]:
    if not experiment.methods:
        return []
    text = (
        "Of the same networks as above. The measured error is the distance of the pruned network's output from the "
        "dense one's, root mean square over the calibration images; Theorem 3.2 says that it does not exceed the bound."
    )
    return ["### Bound against measured output error", tables.bound_table(experiment).markdown(), text]


def _retraining(experiment: Experiment) -> list[str]:
    if not experiment.methods:
        return []
    parts = ["### Retraining", tables.retraining_table(experiment).markdown()]
    rounds = tables.rounds_table(experiment)
    return [*parts, "Round by round:", rounds.markdown()] if rounds.rows else parts


def _page(parts: Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"
