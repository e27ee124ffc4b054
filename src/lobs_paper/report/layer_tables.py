"""The tables of layers and of the stages' seconds, over the seeds."""

from __future__ import annotations

from pandas import DataFrame

from lobs_paper.report.frame import METHOD, Results, by_method
from lobs_paper.report.markdown import printed
from lobs_paper.report.method_tables import methods_of, one_decimal
from lobs_paper.report.statistic import DASH, Statistic, fixed, significant, statistic, whole

# A network of more layers has them as rows, and not all of them in a figure.
MANY_LAYERS = 8
STAGES = ("train", "collect", "prune", "retrain", "evaluate")
_NUMBERS = ("error", "relative_error", "sensitivity_threshold", "bound_contribution", "damping")


def layer_records(results: Results) -> DataFrame:
    """Give a row per run and layer."""
    columns = ("experiment", "method", "folder", "seed", "layer", "shape", "density", "kept", *_NUMBERS)
    return results.layers[list(columns)]


def layers_table(results: Results) -> DataFrame:
    """Give the layers' densities and relative errors, means over the seeds.

    Args:
        results: of one experiment.

    Returns:
        One row per method; for a network of many layers one row per layer, two columns per method.
    """
    layers = results.layers
    names, labels = layers["layer"].unique(), layers["label"].unique()
    rows = by_method(layers, ["density", "relative_error"], ["label", "layer"]).set_index(["label", "layer"])
    density = rows["density"].map(lambda value: significant(100 * value.mean)).unstack("layer")
    error = rows["relative_error"].map(lambda value: significant(value.mean, 2)).unstack("layer")
    density, error = (part.reindex(labels)[list(names)].fillna(DASH) for part in (density, error))
    if len(names) > MANY_LAYERS:
        pairs = {f"{label}{what}": part.loc[label] for label in labels for what, part in _named(density, error)}
        return DataFrame({"layer": list(names), **{title: part.to_numpy() for title, part in pairs.items()}})
    table = DataFrame({"method": labels})
    runs = results.runs.groupby("label")["prune.density"].agg(lambda values: statistic(values).mean)
    table["all %"] = [significant(100 * runs[label]) for label in labels]
    for name in names:
        table[f"{name} %"] = density[name].to_numpy()
    for name in names:
        table[f"{name} relative E"] = error[name].to_numpy()
    return table


def _named(density: DataFrame, error: DataFrame) -> tuple[tuple[str, DataFrame], ...]:
    return (" %", density), (": relative E", error)


def layer_tables(results: Results) -> dict[str, DataFrame]:
    """Give every method's layers; a table has no rows where no layers are known."""
    layers = results.layers.assign(density=100 * results.layers["density"])
    rows = by_method(layers, ["density", "kept", *_NUMBERS], [*METHOD, "layer"])
    shapes = layers.drop_duplicates(["label", "layer"]).set_index(["label", "layer"])["shape"]
    rows["shape"] = [shapes[row.label, row.layer] for row in rows.itertuples()]
    titles = ("E", "relative E", "threshold", "bound term", "damping")
    table = printed(
        rows,
        *(("layer", "layer", str), ("shape", "shape", str)),
        *(("density %", "density", significant), ("kept", "kept", whole)),
        *((title, name, significant) for title, name in zip(titles, _NUMBERS, strict=True)),
    )
    return {label: table[rows["label"] == label] for label in methods_of(results)["label"]}


def timing_table(results: Results) -> DataFrame:
    """Give seconds and peak memory of every stage of one network."""
    place = ["stage", "folder"]
    rows = by_method(results.timings, ["total", "peak_memory_mib"], place)
    layers = by_method(results.layer_seconds, ["seconds"], [*place, "layer"])
    slowest: dict[tuple[str, str], tuple[str, Statistic]] = {}
    for row in layers.itertuples():
        known = slowest.get((row.stage, row.folder))
        if row.seconds and (known is None or row.seconds.mean > known[1].mean):
            slowest[row.stage, row.folder] = (row.layer, row.seconds)
    machines: dict[tuple[str, str], set[str]] = {}
    for timing in results.timings.itertuples():
        machines.setdefault((timing.stage, timing.folder), set()).add(_machine(timing.device, timing.threads))
    keys = list(zip(rows["stage"], rows["folder"], strict=True))
    order = {stage: place for place, stage in enumerate(STAGES)}
    rows = rows.assign(
        # First the stages of the dense network, then method by method, each in the order in which the stages run.
        order=[(folder != "", folder, order.get(stage, len(order))) for stage, folder in keys],
        shown=[folder or DASH for _, folder in keys],
        slowest=[slowest[key][0] if key in slowest else DASH for key in keys],
        its_seconds=[fixed(slowest[key][1]) if key in slowest else DASH for key in keys],
        machine=[", ".join(sorted(machines[key])) for key in keys],
    ).sort_values("order")
    return printed(
        rows,
        *(("stage", "stage", str), ("method", "shown", str), ("seconds", "total", one_decimal)),
        *(("peak memory MiB", "peak_memory_mib", whole), ("slowest layer", "slowest", str)),
        *(("its seconds", "its_seconds", str), ("machine", "machine", str)),
    )


def _machine(device: str | None, threads: float) -> str:
    """The machine in general words, "CPU, 2 threads"."""
    parts = (device.upper() if isinstance(device, str) else "", f"{threads:.0f} threads" if threads == threads else "")
    return ", ".join(part for part in parts if part) or DASH
