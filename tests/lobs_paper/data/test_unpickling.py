"""Foreign pickles: arrays come back, and nothing else is even looked up."""

from __future__ import annotations

import io
import pickle
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lobs_paper.data.unpickling import ArrayUnpickler


def read(data):
    return ArrayUnpickler(io.BytesIO(data)).load()


@settings(max_examples=40, deadline=None)
@given(
    array=arrays.arrays(
        st.sampled_from([np.uint8, np.int64, np.float32, np.dtype(">u2")]), arrays.array_shapes(max_side=4)
    ),
    protocol=st.integers(0, 4),
)
def test_arrays_in_plain_containers_come_back_from_every_protocol(array, protocol):
    data = pickle.dumps({"data": array, "rest": [1, "two", (None, 3.0, b"four")]}, protocol=protocol)
    found = read(data)
    np.testing.assert_array_equal(found["data"], array)
    assert found["data"].dtype == pickle.loads(data)["data"].dtype
    assert found["rest"] == [1, "two", (None, 3.0, b"four")]


def test_numpys_old_and_new_names_are_the_same():
    data = pickle.dumps(np.arange(3), protocol=2)
    old, new = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    for changed in (data.replace(new, old), data.replace(old, new)):
        np.testing.assert_array_equal(read(changed), np.arange(3))


class Harmful:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    ("foreign", "name"),
    [
        (Harmful(), "builtins.print"),
        (subprocess.Popen, "subprocess.Popen"),
        (np.load, "numpy.load"),
        (np.random.default_rng(0), "numpy"),
        (Harmful, __name__),
    ],
)
def test_anything_else_is_refused_and_runs_nothing(foreign, name, capsys):
    with pytest.raises(pickle.UnpicklingError, match=rf"{name}.* is not admitted, only numpy arrays are"):
        read(pickle.dumps([np.arange(3), foreign]))
    assert not capsys.readouterr().out


def test_an_admitted_name_of_another_module_is_refused():
    with pytest.raises(pickle.UnpicklingError, match=r"os.ndarray is not admitted"):
        read(b"cos\nndarray\n.")
