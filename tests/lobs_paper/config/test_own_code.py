"""The user's own modules: found without running them, and known again."""

from __future__ import annotations

import sys

import pytest

from lobs_paper.config.own_code import is_own, own_code

FILES = {
    "my_net.py": "import torch\nfrom my_parts import blocks\nfrom my_parts.deep import Deep\n",
    "my_parts/__init__.py": "",
    "my_parts/blocks.py": "from . import heads\nfrom ..above import nothing\n",
    "my_parts/heads.py": "import json\n",
    "my_parts/deep/__init__.py": "from .inner import Deep\n",
    "my_parts/deep/inner.py": "class Deep:\n    pass\n",
    "my_parts/unused.py": "",
    "my_weights.py": "raise SystemExit('reading runs nothing')\n",
}
NET = {"model": {"_target_": "my_net.Net"}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_what_a_named_module_imports_is_followed_as_far_as_it_is_the_users_own():
    parts = {"my_parts", "my_parts.blocks", "my_parts.heads", "my_parts.deep", "my_parts.deep.inner"}
    assert own_code(NET).keys() == {"my_net", *parts}
    assert own_code({"model": {"_target_": "my_parts.deep.Deep", "weights": "my_weights.path"}}).keys() == {
        *("my_parts", "my_parts.deep", "my_parts.deep.inner", "my_weights")
    }


@pytest.mark.parametrize("target", ["torchvision.models.resnet18", "lobs_paper.networks.lenet5.LeNet5", "json.loads"])
def test_installed_packages_python_and_ours_are_not(target):
    assert own_code({"model": {"_target_": target, "weights": "w.pt"}, "data": {"name": "mnist"}}) == {}


def test_a_remark_changes_nothing_and_a_line_of_code_does(folder):
    before = own_code(NET)
    (folder / "my_parts/heads.py").write_text("# read me\nimport   json\n")
    assert own_code(NET) == before
    (folder / "my_parts/heads.py").write_text("import json\nx = 1\n")
    after = own_code(NET)
    assert {name for name in before if before[name] != after[name]} == {"my_parts.heads"}


def test_a_file_that_is_no_python_is_compared_by_its_bytes(folder):
    (folder / "my_net.py").write_text("class (")
    broken = own_code(NET)
    (folder / "my_net.py").write_text("class [")
    assert own_code(NET).keys() == broken.keys() == {"my_net"}
    assert own_code(NET) != broken


def test_where_a_module_lies_tells_whose_it_is(folder):
    import json

    import torch

    assert is_own(folder / "my_net.py")
    assert not is_own(json_file := type(folder)(json.__file__)), json_file
    assert not is_own(type(folder)(torch.__file__))
