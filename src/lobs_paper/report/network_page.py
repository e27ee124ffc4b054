"""Composes the page of one network: Table 1 in full, why figures differ, every figure, layers, bound and retraining."""

from __future__ import annotations

from collections.abc import Sequence

from lobs_paper.report import comparison, corrections, density, paper, reasons, summary, table2, tables
from lobs_paper.report.drawing import Drawing
from lobs_paper.report.methods import style_of
from lobs_paper.report.remarks import remarks
from lobs_paper.report.results import Experiment
from lobs_paper.report.selection import label_of, samples_note
from lobs_paper.report.statistic import fixed, over_seeds, whole

PROVENANCE = (
    f'Figures marked "{paper.RECALLED}" are recalled from the published tables and not verified; "{paper.VERIFIED}" '
    "means found in a second public source. A dash: not published, or not measured here. The settings of our rows, "
    "each with its source, are in `conf/method/`."
)
_CORRECTIONS = (
    "Test error in percent right after pruning, of the same pruned network with each correction from the calibration "
    "images: the biases take the mean difference of the outputs, the batch norms' means and variances are estimated "
    "anew. Made: what the calibration images chose, by the distance of the outputs from the dense network's; the test "
    "images chose nothing."
)
_DENSITY = (
    "The whole network, cut from dense to each density at once by the method's own criterion and its own way of "
    "sharing the budget out between the layers; of an iterative method, too, this is one cut. Test error in percent at "
    f"the share of weights kept, within {density.NEAR:.0%} of it. A dash: not measured there. As [CSV](density.csv), "
    "with the distance of the outputs."
)


def network_page(experiment: Experiment, drawings: Sequence[Drawing]) -> str:
    """Compose the page.

    Args:
        experiment: what was measured.
        drawings: its figures.

    Returns:
        Markdown.
    """
    parts = [f"# {title_of(experiment)}", _dense_network(experiment), "Back to the [summary](README.md)."]
    in_paper = any(row.paper for row in comparison.compare(experiment))
    parts += ["## Table 1" if in_paper else "## Methods", tables.table1(experiment).markdown(), *remarks(experiment)]
    parts += [f"{comparison.RULES} {comparison.UNTIL_ORIGINAL}", PROVENANCE] if in_paper else []
    parts += (
        _top5(experiment)
        + _reasons(experiment)
        + _spread(experiment)
        + table2_parts(experiment)
        + _corrections(experiment)
        + _without_retraining(experiment)
    )
    for drawing in drawings:
        parts += figure(drawing)
    return join([*parts, *_layers(experiment), *_bound(experiment), *_retraining(experiment)])


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
    return ["## Where and why our figures differ from the paper's", text, "\n".join(found)]


def _top5(experiment: Experiment) -> list[str]:
    table = tables.top5_table(experiment)
    text = "The label is not among the five largest outputs; all other errors are top-1."
    return ["## Top-5 errors", table.markdown(), text] if table.rows else []


def _spread(experiment: Experiment) -> list[str]:
    table = tables.spread_table(experiment)
    return ["## Spread over the seeds", table.markdown()] if table.rows else []


def table2_parts(experiment: Experiment) -> list[str]:
    """Give Table 2 with its heading; nothing for a network that it is not about."""
    table = table2.table(experiment)
    if not table.rows:
        return []
    parts = ["## Table 2: Net-Trim against L-OBS", table.markdown(), table2.finding(experiment), table2.CAPTION]
    return [part for part in parts if part]


def figure(drawing: Drawing, level: str = "##") -> list[str]:
    """Give a figure with its heading and caption."""
    files = [f"[PNG]({drawing.stem}.png)", f"[CSV]({drawing.stem}.csv)"]
    return [
        f"{level} {drawing.title}",
        f"![{drawing.title}]({drawing.stem}.svg)",
        f"{drawing.caption} Also as {' and '.join(files)}.",
    ]


def _corrections(experiment: Experiment) -> list[str]:
    table = corrections.table(experiment)
    return ["## Corrections after pruning", table.markdown(), _CORRECTIONS] if table.rows else []


def _without_retraining(experiment: Experiment) -> list[str]:
    table = density.table(experiment)
    return ["## Without retraining", table.markdown(), _DENSITY] if table.rows else []


def _layers(experiment: Experiment) -> list[str]:
    """The layers' densities and errors; in full on their own page."""
    table = tables.layers_table(experiment)
    if not table.rows:
        return []
    text = (
        "Right after the first pruning, before any retraining; means over the seeds. E: squared change of the layer's "
        f"pre-activations, {samples_note(experiment)}; relative E: as a share of their mean square."
        f"{in_sequence(experiment)} [In full]({paper.layers_stem(experiment.name)}.md)."
    )
    return ["## Layers", table.markdown(), text]


def in_sequence(experiment: Experiment) -> str:
    """Give a sentence on the methods whose E means something else; empty without any."""
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
    return ["## Bound against measured output error", tables.bound_table(experiment).markdown(), text]


def _retraining(experiment: Experiment) -> list[str]:
    if not experiment.methods:
        return []
    parts = ["## Retraining", tables.retraining_table(experiment).markdown()]
    rounds = tables.rounds_table(experiment)
    return [*parts, "Round by round:", rounds.markdown()] if rounds.rows else parts


def join(parts: Sequence[str]) -> str:
    """Join the paragraphs of a page."""
    return "\n\n".join(parts) + "\n"
