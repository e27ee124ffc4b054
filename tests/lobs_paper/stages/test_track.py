"""Command track hands every folder on, and says what became of the runs."""

from __future__ import annotations

from pathlib import Path

from lobs_paper.stages import track


def test_all_folders_of_runs_are_brought_up_to_date(monkeypatch):
    asked = []

    def sync(roots, store, reports, *, models, progress):
        asked.append((roots, store, reports, models, list(progress(["a"]))))
        return {"created": 2}

    monkeypatch.setattr(track, "sync", sync)
    paths = {"runs": "runs", "further_runs": ["more", "others"], "mlflow": "store", "reports": "reports"}
    assert track.run({"folders": paths, "track": {"models": False}}) == {"store": "store", "created": 2}
    roots = [Path("runs"), Path("more"), Path("others")]
    assert asked == [(roots, Path("store"), Path("reports"), False, ["a"])]
