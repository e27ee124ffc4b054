"""Composes the pages of single tables: Table 1 over all networks, Table 2, Tables 3 to 5, costs and timings."""

from __future__ import annotations

from collections.abc import Sequence

from lobs_paper.report import comparison, costs, paper, storage, tables
from lobs_paper.report.drawing import Drawing
from lobs_paper.report.network_page import PROVENANCE, figure, in_sequence, join, table2_parts, title_of
from lobs_paper.report.results import Experiment
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import fixed, whole

_BACK = "Back to the [summary](README.md)."


def table1_page(experiments: Sequence[Experiment]) -> str:
    """Compose Table 1 over all experiments."""
    parts = ["# Table 1"]
    for experiment in experiments:
        parts += [f"## {title_of(experiment)}", tables.table1(experiment).markdown()]
    return join(
        [*parts, f"{comparison.RULES} {comparison.UNTIL_ORIGINAL}", PROVENANCE, f"As [CSV](table1.csv). {_BACK}"]
    )


def figures_page(drawings: Sequence[Drawing]) -> str:
    """Compose the figures that belong to no single network."""
    parts = ["# Figures beyond a single network", f"Figures 2 to 5 are on the networks' pages. {_BACK}"]
    return join([*parts, *(part for drawing in drawings for part in figure(drawing))])


def table2_page(experiments: Sequence[Experiment]) -> str:
    """Compose Table 2."""
    parts = ["# Table 2: Net-Trim against L-OBS"]
    for experiment in experiments:
        body = table2_parts(experiment)
        parts += [f"## {title_of(experiment)}", *body[1:]] if body else []
    return join([*parts, f"As [CSV](table2.csv). {_BACK}"])


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
    return join([*parts, f"As [CSV](methods.csv); [every stage](timings.md). {_BACK}"])


def storage_page(experiments: Sequence[Experiment]) -> str:
    """Compose bytes on disk and milliseconds before and after compaction."""
    parts = [
        "# Bytes and milliseconds before and after compaction",
        "The final networks; with several seeds: mean ± sample standard deviation. Dense: the safetensors file as it "
        "is; sparse: `lobs.save_sparse`, every tensor in its smallest layout, and how many times smaller that is; "
        "compacted: the dense file after `lobs.compact` has removed the units that pruning left dead, which does not "
        "change what the network computes. Milliseconds: medians of repeated calls, before and after in turn, in the "
        "latest run. A dash: not measured, or the network cannot be compacted.",
    ]
    for experiment in experiments:
        table = storage.storage_table(experiment)
        parts += [f"## {title_of(experiment)}", table.markdown() if table.rows else "-"]
    return join([*parts, f"As [CSV](storage.csv). {_BACK}"])


def layers_page(experiment: Experiment) -> str:
    """Compose one network's layers: densities and relative errors of all methods, then every method in full."""
    number = paper.LAYER_TABLES.get(experiment.name)
    stem = paper.layers_stem(experiment.name)
    parts = [
        f"# {f'Table {number}: layers' if number else 'Layers'} of {title_of(experiment)}",
        "Right after the first pruning, before any retraining; with several seeds: means. The paper's figures are not "
        "known to us: ours alone." + in_sequence(experiment),
    ]
    overview = tables.layers_table(experiment)
    parts += [overview.markdown()] if overview.rows else []
    parts += [
        "E: squared change of the layer's pre-activations, "
        "summed over units, mean over samples (of a convolution: positions in its output); relative E: as a share of "
        "their mean square. Threshold: the largest sensitivity among the removed weights. Bound term: what the layer "
        "adds to Theorem 3.2's bound. Damping: added to the diagonal before the inverse was taken.",
    ]
    for runs in experiment.methods:
        table = tables.layer_table(runs)
        parts += [f"## {label_of(runs)}", table.markdown() if table.rows else "-"]
    return join([*parts, f"As [CSV]({stem}.csv). {_BACK}"])


def timings_page(experiments: Sequence[Experiment]) -> str:
    """Compose seconds and peak memory; the page that, with the methods', differs between identical runs."""
    parts = ["# Seconds and memory", "Wall time and peak memory of every stage as measured in the latest run."]
    for experiment in experiments:
        parts += [f"## {title_of(experiment)}", tables.timing_table(experiment).markdown()]
    return join([*parts, f"As [CSV](timings.csv). {_BACK}"])
