"""Every mistake in a YAML file is one line that names it."""

from __future__ import annotations

import pytest

from lobs_paper.config.errors import ConfigError
from lobs_paper.config.yaml_files import read_yaml


def test_a_mapping_is_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: {b: [1, é]}\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"b": [1, "é"]}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a:\n\tb: 1\n", "line 2"),
        (b"a: 1\na: 2\n", "key 'a' is there twice .*line 2"),
        (b"a:\n  b: 1\n  b: 2\n", "key 'b' is there twice"),
        ("a: é".encode("latin-1"), "is not UTF-8"),
        ("a: b".encode("utf-16"), "is not UTF-8"),
        (b"a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        (b"a: [1\n", "no YAML that can be read"),
        (b"\x00", "no YAML that can be read"),
        (b"[" * 5000, "no YAML that can be read"),
        (b"? [a]\n: 1\n", "no YAML that can be read"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, expected):
    path = tmp_path / "a.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"a.yaml .*{expected}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
