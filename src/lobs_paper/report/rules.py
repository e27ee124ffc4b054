"""Why our figures differ from the paper's: a table of rules, with what each applies to, when it holds, and its words.

A rule speaks of one error of a row of Table 1, only for the direction that was measured: all its numbers come from the
facts about that row, and it holds only where what it rests on was measured and is so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy
from jinja2 import Environment
from pandas import DataFrame

from lobs_paper.report.curves import at_density
from lobs_paper.report.frame import Results
from lobs_paper.report.layer_tables import MANY_LAYERS
from lobs_paper.report.paper import DATA, LARGEST_DAMPING
from lobs_paper.report.statistic import DASH, Statistic, fixed, significant, statistic, whole
from lobs_paper.report.table1 import DENSITY_POINTS
from lobs_paper.report.table2 import SAME_DENSITY_POINTS

NO_REASON = "We have no explanation that our measurements support."
NO_WORDS = "not explained by what we measured"
# More reasons than this are no line of a table any more.
_MOST_WORDS = 2
_WORDS = {"better": "better", "reproduced": "reproduced", "not reproduced": "worse"}
# What the rules compare the facts with: the share of guessing's error from which a network is said to be no better, the
# share of the paper's iterations up to which ours are fewer, and the largest damping that the paper's alpha can mean.
_LIMITS = {"useless": 0.9, "fewer": 0.5, "largest_damping": LARGEST_DAMPING}
# Rule of allocation -> in words, how it shares a budget out between the layers.
_SHARED_BY = {
    **dict.fromkeys(("global", "relative"), "equal slopes of their relative errors"),
    **dict.fromkeys(
        ("fisher", "fisher_summed"), "equal slopes of their errors times the loss's curvature in their outputs"
    ),
    "fisher_units": "equal slopes of their units' errors times the loss's curvature in their outputs",
    "theorem": "equal slopes of their terms in Theorem 3.2's bound",
    **dict.fromkeys(("measured", "measured_joint"), "what the pruned network's outputs lose"),
}
# Data that nobody can download without an account.
_NOT_FETCHED = ("ImageNet",)
# Method -> ours of the same kind that do not keep the inverse fixed.
_BESIDE = {"lobs": ("lobs_resolve", "exact_obs"), "lobs_iterative": ("exact_obs_iterative",)}


class Rule(NamedTuple):
    """One reason.

    Attributes:
        applies: pattern of "<method> <stage> <judgement>".
        holds: condition on the facts, a Jinja expression.
        sentence: Jinja template.
        words: the same in a few words, for the summary.
    """

    applies: str
    holds: str
    sentence: str
    words: str = ""


RULES = (
    Rule(
        r"(random|magnitude|lwc|obd) after pruning .*",
        "classes and [judged.ours.mean, judged.papers] | min >= useless * guessing",
        "Guessing among {{ classes }} classes errs in about {{ '%.0f' % guessing }}%: neither network is of any use "
        "before it is retrained, and by how much they miss means little.",
        "both no better than guessing before retraining",
    ),
    Rule(
        r"lobs(_iterative)? after pruning better|\w+ after retraining .*",
        "row.original_error",
        "The dense networks differ too: {{ row.original_error | fixed }}% here, "
        "{{ '%.2f' % row.paper_original_error }}% there; against its own ours changes by "
        "{{ '%+.2f' % (judged.ours.mean - row.original_error.mean) }} points, the paper's by "
        "{{ '%+.2f' % (judged.papers - row.paper_original_error) }}"
        "{% set before = row.original_error.mean - row.paper_original_error %}"
        "{% if judged.points * before > 0 and before | abs >= judged.points | abs / 2 %}"
        ", so at least half of the difference was there before pruning{% endif %}.",
        "dense network {{ row.original_error | fixed }}% here, {{ '%.2f' % row.paper_original_error }}% there",
    ),
    Rule(
        r"(magnitude|obd|lobs) after pruning better",
        "shared",
        "Our budget is shared out between the layers by {{ shared.how }}: {{ shared.listed }}."
        "{% if shared.spared %} With {{ '%.3g' % row.density.mean }}% in every layer {{ shared.spared[0] }}'s relative "
        "error would be {{ '%.2g' % shared.spared[1] }} instead of {{ '%.2g' % shared.spared[2] }}.{% endif %}"
        " How the paper shared its budgets out is not known to us.",
        "budget shared out between the layers",
    ),
    Rule(
        r"lwc after pruning better",
        "last_round",
        "Ours is that of the last round of {{ last_round.count | whole }}, which starts from a network already "
        "retrained at {{ last_round.before | significant }}%; whether the paper's is that of one cut is not known to "
        "us.{% if at_once %} Cut from the dense network at once, by the same rule, it errs in {{ at_once }} of the "
        "weights.{% endif %}",
        "last of several rounds, each retrained",
    ),
    Rule(
        r"(magnitude|obd|lwc) after pruning better",
        "true",
        "The network matters too: networks of one shape that were trained differently can differ widely in what is "
        "left of them at one density, and how the paper trained its own is not known to us.",
        "another dense network",
    ),
    Rule(
        r"obd after pruning .*",
        "true",
        "OBD's criterion knows only the diagonal of the loss's Hessian near a minimum, which says little about "
        "removing {{ '%.3g' % (100 - row.density.mean) }}% of the weights at once (LeCun et al. removed a few percent "
        "at a time).{% if magnitudes %} Plain magnitudes do better here: {{ magnitudes | fixed }}%.{% endif %}",
        "OBD's diagonal says little about so many weights",
    ),
    Rule(
        r"lobs(_iterative)? after pruning better",
        "smallest_damping > largest_damping",
        "Our inverse is damped by {{ damping }}, where the paper's alpha means at most {{ '%g' % largest_damping }}; "
        "more damping means smaller compensations.",
        "inverse damped more",
    ),
    Rule(
        r"lobs(_iterative)? after pruning not reproduced",
        "true",
        "With the inverse kept fixed, each compensation also changes weights that were removed before, which are then "
        "set back to zero: what is left is not the best for its mask"
        "{% if damping %} (the inverse is damped by {{ damping }}){% endif %}.",
        "with the inverse fixed, compensations change removed weights",
    ),
    Rule(
        r"lobs(_iterative)? after pruning not reproduced",
        "beside",
        "On the same networks, at the same density: {{ beside | join('; ') }}.",
        "exact solvers do better on the same networks",
    ),
    Rule(
        r"\w+ after retraining better",
        "row.iterations and row.iterations.mean <= fewer * row.paper_iterations",
        "Ours is retrained {% if recipe %}with {{ recipe }}{% else %}by another recipe{% endif %} and gets by with "
        "fewer iterations ({{ row.iterations.mean | whole }} against {{ row.paper_iterations | whole }}).",
        "another retraining, {{ row.iterations.mean | whole }} iterations against {{ row.paper_iterations | whole }}",
    ),
    Rule(
        r"\w+ after retraining not reproduced",
        "row.iterations and row.iterations.mean <= fewer * row.paper_iterations",
        "Ours was retrained for {{ row.iterations.mean | whole }} iterations, the paper's for "
        "{{ row.paper_iterations | whole }}: the likely reason.",
        "{{ row.iterations.mean | whole }} iterations against {{ row.paper_iterations | whole }}",
    ),
    Rule(
        r"apoz without a row",
        "row.error_after_pruning.mean > row.original_error.mean",
        "It errs in {{ row.error_after_pruning | fixed }}% after pruning: ApoZ removes whole units, with all their "
        "weights, the large ones too{% if units %} (kept: {{ units }} units){% endif %}.",
    ),
)

_JINJA = Environment(autoescape=False)
_JINJA.filters.update(fixed=fixed, significant=significant, whole=whole)


def explained(results: Results, rows: DataFrame) -> DataFrame:
    """Say why rows of Table 1 differ from the paper's.

    Args:
        results: what was measured.
        rows: of `table1.compare`.

    Returns:
        The rows with columns `why`, a few words on the error that decides, and `reasons`, a Markdown list item on all
        of them; empty where there is nothing to say.
    """
    texts = []
    for name, group in rows.groupby("experiment", sort=False):
        own, in_paper = results.of(name), group["source"].notna().any()
        for row in group.itertuples():
            facts = _facts(row, group, own) if row.seeds and in_paper else {}
            texts.append({"why": _why(row, facts), "reasons": _item(row, facts)})
    return rows.assign(**DataFrame(texts, index=rows.index, columns=["why", "reasons"]))


def holding(facts: dict[str, Any], case: str) -> Iterator[tuple[str, str]]:
    """Give sentence and words of every rule that applies to "<method> <case>" and holds."""
    for rule in RULES:
        if re.fullmatch(rule.applies, f"{facts['row'].method} {case}") and _JINJA.compile_expression(rule.holds)(
            **facts
        ):
            yield _JINJA.from_string(rule.sentence).render(facts), _JINJA.from_string(rule.words).render(facts)


def _why(row: Any, facts: dict[str, Any]) -> str:
    """Why the error that decides on a row differs from the paper's, or why there is none."""
    judged = row.decisive
    if not row.seeds:
        data = DATA.get(row.experiment)
        return f"needs the {data} data set" if data in _NOT_FETCHED else ""
    if not judged:
        return row.verdict.removeprefix("not judged: ").replace(DASH, "")
    if judged.judgement == "reproduced":
        return ""
    words = [words for _, words in holding({**facts, "judged": judged}, f"{judged.stage} {judged.judgement}")]
    return "; ".join(words[:_MOST_WORDS]) or NO_WORDS


def _item(row: Any, facts: dict[str, Any]) -> str:
    head = f"- **{row.label}**"
    if not facts:
        return ""
    if row.source != row.source:
        sentences = " ".join(sentence for sentence, _ in holding(facts, "without a row"))
        return f"{head}: {row.verdict}. {sentences}" if sentences else ""
    if not row.judged:
        return f"{head}: {row.verdict}." if row.verdict != DASH else ""
    lines = [head]
    for judged in row.judged:
        found = holding({**facts, "judged": judged}, f"{judged.stage} {judged.judgement}")
        reason = "" if judged.judgement == "reproduced" else " ".join(text for text, _ in found) or NO_REASON
        ours = f"{judged.stage} {fixed(judged.ours)}%, the paper's {judged.papers:.2f}%: {_WORDS[judged.judgement]}."
        lines.append(f"  - {ours} {reason}".rstrip())
    return "\n".join(lines)


def _facts(row: Any, rows: DataFrame, results: Results) -> dict[str, Any]:
    """What the rules can rest on."""
    runs, layers, paths, rounds, curve = (
        frame[frame["label"] == row.label]
        for frame in (results.runs, results.layers, results.paths, results.rounds, results.density_curve)
    )
    classes = (
        int(layers[layers["seed"] == layers["seed"].iloc[0]]["shape"].iloc[-1].split("x")[0]) if len(layers) else 0
    )
    dampings = {name: statistic(group) for name, group in layers.groupby("layer", sort=False)["damping"]}
    several = rounds[rounds.groupby("seed")["round"].transform("size") > 1].groupby("seed")
    before = several.nth(-2)["density"]
    last_round = {"count": statistic(several.size()), "before": statistic(100 * before)}
    return {
        **_LIMITS,
        "row": row,
        "classes": classes,
        "guessing": 100 * (1 - 1 / classes) if classes else 0.0,
        "shared": _shared(row, runs, layers, paths),
        "last_round": last_round if len(before) and before.notna().all() else None,
        "at_once": _at_once(row, curve),
        "magnitudes": _magnitudes(row, rows),
        "recipe": _recipe(runs),
        "damping": ", ".join(f"{value.mean:.2g} ({name})" for name, value in dampings.items() if value),
        "smallest_damping": layers["damping"].fillna(0.0).min() if len(layers) else 0.0,
        "beside": _beside(row, runs, results.runs),
        "units": _units(runs.iloc[0], layers),
    }


def _shared(row: Any, runs: DataFrame, layers: DataFrame, paths: DataFrame) -> dict[str, Any] | None:
    """How an automatic rule shared the budget of one pruning out, and which layer that spared most."""
    rules = runs["prune.shared_by"].fillna(runs["prune.allocation"])
    automatic = rules.isin(list(_SHARED_BY)).all() and (runs["rounds"] <= 1).all()
    if not automatic or set(runs["seed"]) != set(layers["seed"]):
        return None
    density, error = (
        {name: statistic(group).mean for name, group in layers.groupby("layer", sort=False)[column]}
        for column in ("density", "relative_error")
    )
    evenly: dict[str, list[float]] = {}
    for (name, _), points in paths.sort_values("density", kind="stable").groupby(["layer", "seed"]):
        places, values = points["density"].to_numpy(), points["relative_error"].to_numpy()
        evenly.setdefault(name, []).append(
            float(numpy.interp(row.density.mean / 100, places, values, numpy.nan, numpy.nan))
        )
    spared = [(name, statistic(evenly.get(name, ())).mean, error[name]) for name in density]
    spared = [entry for entry in spared if entry[1] > entry[2]]
    listed = ", ".join(f"{name} keeps {100 * value:.3g}%" for name, value in density.items())
    if len(density) > MANY_LAYERS:
        ends = [f"{100 * end(density.values()):.3g}%" for end in (min, max)]
        listed = f"its {len(density)} layers keep {ends[0]} to {ends[1]}"
    most = max(spared, key=lambda entry: entry[1] - entry[2], default=None)
    return {"how": _SHARED_BY[rules.iloc[0]], "listed": listed, "spared": most}


def _at_once(row: Any, curve: DataFrame) -> str:
    """What one cut from the dense network leaves, at the measured densities around the row's."""
    measured = set(curve["density"])
    above = min((density for density in measured if 100 * density >= row.density.mean), default=None)
    below = max((density for density in measured if 100 * density <= row.density.mean), default=None)
    around = [density for density in dict.fromkeys((above, below)) if density]
    errors = ((statistic(at_density(curve, density)["test_error_percent"]), density) for density in around)
    return " and in ".join(f"{fixed(error)}% at {100 * density:.3g}%" for error, density in errors)


def _magnitudes(row: Any, rows: DataFrame) -> Statistic | None:
    """The error of plain magnitudes, where they do better at about the same density."""
    others = (other for other in rows.itertuples() if other.method == "magnitude" and other.error_after_pruning)
    near = (other for other in others if abs(other.density.mean - row.density.mean) <= DENSITY_POINTS)
    error = next((other.error_after_pruning for other in near), Statistic())
    return error if error.mean < row.error_after_pruning.mean else None


def _recipe(runs: DataFrame) -> str:
    """How a network was retrained, as far as the first seed's metrics record it."""
    known = runs[runs[["retrain.recipe.optimizer", "retrain.recipe.schedule"]].notna().any(axis=1)]
    if known.empty:
        return ""
    optimizer, momentum, schedule = known.iloc[0][
        ["retrain.recipe.optimizer", "retrain.recipe.momentum", "retrain.recipe.schedule"]
    ]
    parts = (
        optimizer.upper() if isinstance(optimizer, str) else "",
        f"momentum {momentum:g}" if momentum > 0 else "",
        f"a {schedule.replace('_', ' ')} schedule" if isinstance(schedule, str) and schedule != "constant" else "",
    )
    return ", ".join(part for part in parts if part)


def _beside(row: Any, runs: DataFrame, others: DataFrame) -> list[str]:
    """The methods of `_BESIDE` that do better on the same networks at the same density."""
    found = []
    listed = others[others["method"].isin(_BESIDE.get(row.method, ()))]
    for label, group in listed.groupby("label", sort=False):
        pairs = runs.merge(group, on="seed", suffixes=("", "_other"))
        ours, other = (statistic(pairs[f"error_after_pruning{end}"]) for end in ("", "_other"))
        same = ((pairs["density"] - pairs["density_other"]).abs() <= SAME_DENSITY_POINTS).all()
        if same and other.mean < ours.mean:
            found.append(f"{label} errs in {fixed(other)}%, {row.label} in {fixed(ours)}%")
    return found


def _units(run: Any, layers: DataFrame) -> str:
    """Share of units kept in every hidden layer of the first seed; empty where later rounds have removed more."""
    densities = layers[layers["seed"] == run["seed"]].set_index("layer")["density"].iloc[:-1]
    if run["rounds"] > 1 or not (densities > 0).all():
        return ""
    shares, read = (
        [],
        1.0,
    )  # a layer's density is the product of its own units' share and that of the units that it reads
    for name, density in densities.items():
        read = density / read
        shares.append(f"{100 * read:.3g}% of {name}'s")
    return ", ".join(shares)
