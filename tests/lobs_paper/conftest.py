"""A project in which the stages have run."""

from __future__ import annotations

import pytest

from helpers.stages import SMALL, TRAINED, lobs, write_data


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A working directory in which every stage has run for lobs, and prune and retrain for the methods that train."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data("data")
        for stage in ("train", "collect", "prune", "retrain", "evaluate"):
            lobs(stage, *SMALL)
        for words in TRAINED:
            for stage in ("prune", "retrain"):
                lobs(stage, *words, *SMALL)
        yield folder
