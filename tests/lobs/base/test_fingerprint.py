"""Digests tell what differs, and a folder belongs to the call that claimed it."""

import json

import pytest
import torch

from lobs.base.fingerprint import CALL, claim_folder, digest, tensor_digest

BASE = torch.arange(6, dtype=torch.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "other",
    [
        BASE.double(),
        BASE.reshape(3, 2),
        BASE.flip(0),
        BASE.T,
        BASE[:1],
        torch.tensor([[-0.0, 1, 2], [3, 4, 5]]),
        torch.where(BASE == 3, 3 + 1e-6, BASE),
        BASE.view(torch.int32),
        BASE.bool(),
    ],
)
def test_other_types_shapes_and_values_have_other_digests(other):
    assert tensor_digest(other) != tensor_digest(BASE)


def test_equal_tensors_have_equal_digests_however_they_lie():
    parameter = torch.nn.Parameter(BASE.T.contiguous().T)
    assert not parameter.is_contiguous()
    assert tensor_digest(parameter) == tensor_digest(BASE)
    for values in (torch.zeros(0, 3), torch.tensor(1.5), torch.ones(3).bfloat16(), torch.tensor([1 + 2j]), BASE > 2):
        assert tensor_digest(values) == tensor_digest(values.clone())
    assert tensor_digest(torch.zeros(0, 3)) != tensor_digest(torch.zeros(3, 0))


def test_one_digest_of_many_parts_depends_on_each_and_on_their_order():
    found = {digest(parts) for parts in (["w", BASE, "b"], ["b", BASE, "w"], ["w", BASE + 1, "b"], ["w", BASE], [])}
    assert len(found) == 5
    assert digest(iter(["w", BASE, 3])) == digest(["w", BASE.clone(), "3"])


def test_a_folder_is_claimed_once_and_its_own_call_goes_on(tmp_path):
    folder = tmp_path / "deep" / "parts"
    claim_folder(folder, {"network": "abc", "layers": ["0", "2"], "loss": None})
    note = folder / CALL
    assert json.loads(note.read_text()) == {"network": "abc", "layers": "['0', '2']", "loss": "None"}
    written = note.stat().st_mtime_ns
    (folder / "0.safetensors").write_bytes(b"a finished part")
    claim_folder(folder, {"loss": None, "network": "abc", "layers": ["0", "2"]})
    assert note.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"network": "xyz", "loss": "mse"}, r"another call: network, loss differ \(abc there, xyz now\)"),
        ({"network": "abc"}, r"another call: loss differ \(None there, nothing now\)"),
        ({"network": "abc", "loss": None, "seed": "7" * 99}, r"seed differ \(nothing there, 7{60}\.\.\. now\)"),
    ],
)
def test_another_call_is_refused_by_what_differs(tmp_path, call, message):
    claim_folder(tmp_path, {"network": "abc", "loss": None})
    with pytest.raises(ValueError, match=message):
        claim_folder(tmp_path, call)
    claim_folder(tmp_path, {"network": "abc", "loss": None})


def test_folders_that_belong_to_nobody_known_are_refused(tmp_path):
    for name in ("parts/0.safetensors", "calls/calls.json", "below/deep/0.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("parts", "calls", "below"):
        with pytest.raises(ValueError, match=f"holds files and no {CALL}"):
            claim_folder(tmp_path / name, {"network": "abc"})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("somebody else's, and in nobody's way")
    claim_folder(tmp_path / "notes", {"network": "abc"})
    (tmp_path / "notes" / CALL).write_text('{"network": "a')
    with pytest.raises(ValueError, match=r"another call: call, network differ \(an unreadable note there, nothing now"):
        claim_folder(tmp_path / "notes", {"network": "abc"})
    with pytest.raises(ValueError, match=r"README\.md' is a file: give a folder"):
        claim_folder(tmp_path / "notes" / "README.md", {"network": "abc"})
