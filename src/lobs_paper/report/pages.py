"""Writes every file of the report: the pages' numbers meet their words, which stand in templates/.

README.md, the networks' pages and index.html follow from the metrics alone. The seconds and the memory of a run stand
apart, in timings.md, methods.md and storage.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pandas import DataFrame

from lobs_paper.files import remove_abandoned, write_table, write_text
from lobs_paper.report import (
    figures,
    findings,
    frontier,
    interactive,
    layer_tables,
    literature,
    method_tables,
    paper,
    table1,
    table2,
)
from lobs_paper.report.curves import NEAR, samples_note
from lobs_paper.report.drawing import Drawing
from lobs_paper.report.frame import Results
from lobs_paper.report.markdown import joined, markdown
from lobs_paper.report.methods import style_of
from lobs_paper.report.rules import explained
from lobs_paper.report.statistic import fixed, significant, statistic, whole

# Pages that benchmarks/ writes into the same folder, not the report stage.
BENCHMARKS = {
    "solvers.md": "layer error and seconds of every solver",
    "speed.md": "what takes time, against floors and plain references",
    "gpu.md": "the same on a GPU",
    "lobs_iterative.md": "how far the published algorithm goes in rounds, by a search on held-out training images",
    "large_layer.txt": "VGG-16's first classifier",
    "imagenet_shapes.md": "VGG-16 and ResNet-50 from calibration to pruned network",
    "scale.md": "what grows with inputs, layers, images and devices, up to 100 billion weights",
    "allocation.md": "ways of sharing a budget out between layers, on held-out training images",
    "accelerate.md": "what pruned networks gain in speed, compacted and by sparse kernels",
}
BENCHMARK_FILES = (
    *("solvers.*", "speed.*", "gpu.md", "large_layer.txt", "memory.csv", "allocation.*", "figure1.csv"),
    *("lobs_iterative.*", "accelerate.*", "scale.*"),
    *("imagenet_shapes.*", "wall_clock.csv"),
)
# The report's own files, one name per line.
MANIFEST = "files.txt"
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
FRONTIER = "Without labels, without retraining"
LITERATURE = "One-shot pruning in the literature, and ours"
# So many layers stand for a network of many.
_EXAMPLES = 3


def _bullets(texts: str | Iterable[str]) -> str:
    lines = texts.split("\n") if isinstance(texts, str) else texts
    return "\n".join(f"- {line.strip()}" for line in lines if line.strip())


_JINJA = Environment(loader=PackageLoader("lobs_paper.report"), undefined=StrictUndefined, autoescape=False)
_JINJA.filters.update(fixed=fixed, significant=significant, whole=whole, one_decimal=method_tables.one_decimal)
_JINJA.filters.update(markdown=markdown, joined=joined, bullets=_bullets)
_JINJA.globals.update(paper=paper, table1=table1, near=NEAR)


def render(template: str, **context: Any) -> str:
    """Compose a page; paragraphs stand one empty line apart, whatever was left out between them."""
    text = _JINJA.get_template(f"{template}.md.j2").render(context)
    return re.sub(r"\n\s*\n", "\n\n", text).strip() + "\n"


def write_pages(results: Results, reports_dir: Path) -> list[Path]:
    """Write the whole report, and remove what an earlier one wrote and this one did not.

    Args:
        results: what was measured.
        reports_dir: folder to write into; created when it is missing.

    Returns:
        The files written, README.md first.
    """
    rows = explained(results, table1.compare(results))
    networks = [_network(results.of(name), rows, reports_dir) for name in results.experiments]
    common = figures.draw(figures.COMMON, results, reports_dir)
    beyond = [drawing for drawing in common if drawing.stem != figures.OVERVIEW]
    has_table2 = any(len(own["compared"]) for own in networks)
    further = _further(results)
    shared = {"networks": networks, "drawings": beyond, "has_table2": has_table2, "further": further}
    shared["refitted"] = "frontier" in further
    shared["benchmarks"] = _benchmarks(reports_dir)
    pages = {
        "README.md": render("README", **shared, **_first_page(results, rows, common, reports_dir)),
        **{f"{own['name']}.md": render("network", **own) for own in networks},
        **{f"{own['stem']}.md": render("layers", **own) for own in networks},
    }
    several = ["figures", "table1", "methods", "timings", "storage", *(["table2"] if has_table2 else []), *further]
    pages |= {f"{name}.md": render(name, **shared) for name in several}
    links = {
        **_LINKS,
        **{f"{name}.md": title for name, title in further.items()},
        **{f"{own['name']}.md": own["title"] for own in networks},
    }
    machine = findings.machine(results)
    introduction = [*findings.what_was_run(results), *([f"Measured on: {machine}."] if machine else [])]
    pages[interactive.NAME] = interactive.index_page(results, rows, introduction, links)
    paths = [write_text(reports_dir / name, text) for name, text in pages.items()]
    paths += [write_table(reports_dir / f"{name}.csv", table) for name, table in _csv(results, rows).items()]
    for drawing in (*common, *(drawing for own in networks for drawing in own["drawings"])):
        paths += drawing.write(reports_dir)
    remove_stale(reports_dir, paths)
    remove_abandoned(reports_dir)
    return [*paths, reports_dir / MANIFEST]


def _further(results: Results) -> dict[str, str]:
    """The titles of the pages that not every report has, by name."""
    return {
        **({"frontier": FRONTIER} if results.runs["error_after_refit"].notna().any() else {}),
        **({"literature": LITERATURE} if {*results.experiments} & {*literature.EXPERIMENTS} else {}),
    }


def _csv(results: Results, rows: DataFrame) -> dict[str, DataFrame]:
    """The tables in full precision by the names of their files."""
    run = ["experiment", "method", "folder", "seed"]
    errors = ["density", "error_after_pruning_percent", "error_after_retraining_percent", "iterations"]
    stage = ["experiment", "seed", "folder"]
    tables = {
        "table1": table1.table1_records(rows[rows["experiment"].isin(results.experiments)]),
        "density": method_tables.density_records(results),
        "layers": layer_tables.layer_records(results),
        "bound": method_tables.bound_records(results),
        "retraining": results.rounds[[*run, "round", *errors]],
        "methods": method_tables.method_records(results),
        "timings": results.timings[[*stage, "stage", "total", "peak_memory_mib", "device", "threads"]],
        "storage": method_tables.storage_records(results),
        "latency": results.latency[[*stage, "network", "batch", "before_ms", "after_ms"]],
    }
    for name in results.experiments:
        tables[paper.layers_stem(name)] = layer_tables.layer_records(results.of(name))
    records = {"frontier": frontier.frontier_records, "literature": literature.literature_records}
    tables |= {name: records[name](results) for name in _further(results)}
    compared = table2.records(results)
    return {**tables, "table2": compared} if len(compared) else tables


def _first_page(results: Results, rows: DataFrame, common: Sequence[Drawing], reports_dir: Path) -> dict[str, Any]:
    """What the first page tells."""
    data = {results.of(name).data for name in results.experiments}
    published = rows[rows["source"].notna()]
    return {
        "overview": next((drawing for drawing in common if drawing.stem == figures.OVERVIEW), None),
        "what_was_run": findings.what_was_run(results),
        "data_notes": {name: note for name, note in DATA_NOTES.items() if name in data},
        "machine": findings.machine(results),
        "counts": findings.counts(published[published["seeds"] > 0]),
        "headlines": list(findings.headlines(results, rows)),
        "refits": list(findings.refits(results)),
        "missed": findings.short_of(published),
        "bound": method_tables.bound_summary(results),
        "summary": table1.summary_table(published),
    }


def _benchmarks(reports_dir: Path) -> dict[str, str]:
    """The benchmarks' pages that are there, with their titles."""
    return {name: title for name, title in BENCHMARKS.items() if (reports_dir / name).exists()}


def _network(results: Results, rows: DataFrame, reports_dir: Path) -> dict[str, Any]:
    """What the pages of one network tell."""
    name, dense = results.experiments[0], results.dense
    rows = rows[rows["experiment"] == name]
    compared = table2.compare(results)
    sequential = [
        row.label for row in method_tables.methods_of(results).itertuples() if style_of(row.method).in_sequence
    ]
    return {
        "name": name,
        "title": results.title,
        "heading": f"`{name}`" if results.title == name else f"{results.title} (`{name}`)",
        "stem": paper.layers_stem(name),
        "number": paper.LAYER_TABLES.get(name),
        "dense": {
            column: statistic(dense[column])
            for column in dense.columns
            if column.endswith(("percent", "parameters", "images"))
        },
        "seeds": ", ".join(map(str, dense["seed"])) or "-",
        "measured_on": ", ".join(sorted({*dense["train.measured_on"].dropna()} - {"test"})),
        "in_paper": rows["source"].notna().any(),
        "rows": table1.table1(rows),
        "frontier": frontier.frontier_table(results),
        "data": results.data,
        "literature": literature.literature_table(results),
        "published": literature.published(results),
        "refitted": results.runs["error_after_refit"].notna().any(),
        "remarks": _remarks(results),
        "reasons": [text for text in rows["reasons"] if text],
        "compared": table2.table(compared),
        "finding": table2.finding(compared),
        "drawings": figures.draw(figures.NETWORK, results, reports_dir),
        "samples": samples_note(results.layers),
        "sequential": " and of ".join(sequential),
        "layers": layer_tables.layers_table(results),
        "layer_tables": layer_tables.layer_tables(results),
        "timings": layer_tables.timing_table(results),
        "collecting": method_tables.collect_costs(results),
        **{
            part: getattr(method_tables, f"{part}_table")(results)
            for part in (
                "bound",
                "retraining",
                "rounds",
                "top5",
                "spread",
                "corrections",
                "density",
                "method",
                "storage",
            )
        },
    }


def _remarks(results: Results) -> list[str]:
    """What a reader of Table 1 must know: weights that were left alone, what pruning decided, what re-solving is."""
    texts = []
    for _, run in results.runs.iterrows():
        where, share, notes = f"{run['label']}, seed {run['seed']}", run["prune.unpruned_share"], run["prune.notes"]
        texts += [f"{where}: {share:.1%} of the network's weights were not pruned."] if share > 0 else []
        texts += [f"{where}: {note}." for note in notes] if isinstance(notes, list) else []
    labels = dict(zip(results.runs["method"], results.runs["label"], strict=True))
    if "lobs_resolve" not in labels:
        return texts
    lobs, resolved = (results.layers[results.layers["label"] == labels.get(name)] for name in ("lobs", "lobs_resolve"))
    pairs = lobs.merge(resolved, on=["seed", "layer"], suffixes=("", "_resolved")).dropna(subset=["density"])
    pairs = pairs[pairs["seed"] == pairs["seed"].min()]
    differing = pairs[pairs["density"] != pairs["density_resolved"]]
    most = (differing["density"] - differing["density_resolved"]).abs().sort_values(ascending=False, kind="stable")
    many = len(differing) > layer_tables.MANY_LAYERS
    context = {
        "label": labels["lobs_resolve"],
        "compared": len(pairs),
        "many": many,
        "differing": differing[differing.index.isin(most.index[:_EXAMPLES])] if many else differing,
    }
    return [*texts, render("resolved", **context).strip()]


def remove_stale(folder: Path, written: Iterable[Path]) -> list[Path]:
    """Remove the files of an earlier report that this one did not write, and list this one's in `MANIFEST`.

    Args:
        folder: of the report.
        written: the files of this report, all in the folder.

    Returns:
        The files removed: only ever such as the earlier report listed as its own, and never those of the benchmarks.
    """
    manifest = folder / MANIFEST
    names = sorted({path.name for path in written} | {MANIFEST})
    before = manifest.read_text(encoding="utf-8").split("\n") if manifest.exists() else []
    # A name with a folder in it is none of ours: the report writes into one folder only.
    own = (folder / name for name in sorted({*before} - {*names}) if name and name == Path(name).name)
    stale = [
        path for path in own if path.is_file() and not any(fnmatchcase(path.name, entry) for entry in BENCHMARK_FILES)
    ]
    for path in stale:
        path.unlink()
    write_text(manifest, "\n".join(names) + "\n")
    return stale
