"""The one line of the summary on why a row of Table 1 differs from the paper: reasons.py in a few words each.

The words stand only where the sentence that they shorten holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lobs_paper.report import reasons
from lobs_paper.report.reasons import Facts, Sentence
from lobs_paper.report.statistic import fixed

# More reasons than this are no line any more.
_MOST = 2
NO_WORDS = "not explained by what we measured"


def why(facts: Facts) -> str:
    """Say in a few words why the error that decides on a row is another one than the paper's.

    Args:
        facts: of the row.

    Returns:
        The words, without a full stop; empty for a row that is reproduced or not judged.
    """
    judged = facts.row.decisive
    if judged is None or judged.judgement == "reproduced":
        return ""
    known = replace(facts, judged=judged)
    holding = [sentence for sentence in reasons.sentences_for(facts, judged) if sentence(known)]
    words = [_WORDS[sentence](known) for sentence in holding if sentence in _WORDS]
    return "; ".join(words[:_MOST]) or NO_WORDS


def _dense(facts: Facts) -> str:
    row = facts.row
    return f"dense network {fixed(row.original)}% here, {row.paper.original if row.paper else 0:.2f}% there"


def _iterations(facts: Facts) -> str:
    row = facts.row
    if row.iterations is None or row.paper is None:
        return "another retraining"
    return f"{row.iterations.mean:,.0f} iterations against {row.paper.iterations:,.0f}"


_WORDS: dict[Sentence, Callable[[Facts], str]] = {
    reasons.guessing: lambda _: "both no better than guessing before retraining",
    reasons.shared_budget: lambda _: "budget shared out between the layers",
    reasons.network: lambda _: "another dense network",
    reasons.last_round: lambda _: "last of several rounds, each retrained",
    reasons.diagonal: lambda _: "OBD's diagonal says little about so many weights",
    reasons.dense: _dense,
    reasons.recipe: lambda facts: f"another retraining, {_iterations(facts)}",
    reasons.fewer_iterations: _iterations,
    reasons.more_damping: lambda _: "inverse damped more",
    reasons.fixed_inverse: lambda _: "with the inverse fixed, compensations change removed weights",
    reasons.better_weights: lambda _: "exact solvers do better on the same networks",
}
