"""How a call is carried out: its folder, its progress, and what is refused."""

from pathlib import Path

import pytest

from lobs.base.execution import Execution


def test_progress_wraps_what_is_gone_through():
    seen = []

    def progress(items):
        seen.append(list(items))
        return seen[-1]

    assert list(Execution(progress=progress).shown("ab")) == ["a", "b"]
    assert seen == [["a", "b"]]
    items = iter("ab")
    assert Execution().shown(items) is items


def test_a_folder_may_be_given_by_its_name_and_has_folders_inside():
    execution = Execution(5, "somewhere", list)
    assert execution.folder == Path("somewhere")
    inside = execution.inside("paths")
    assert inside == Execution(5, Path("somewhere/paths"), list)
    without = Execution(5)
    assert without.inside("paths") is without


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "5 GB"}, "memory must be a ceiling in bytes, a number; got .5 GB. .str."),
        ({"progress": True}, r"progress must be a function that wraps an iterable \(tqdm, say\), got True"),
    ],
)
def test_what_is_of_the_wrong_type_is_refused(options, message):
    with pytest.raises(TypeError, match=message):
        Execution(**options)
