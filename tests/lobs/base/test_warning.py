"""Warnings point to the line that called the library, whatever lies between."""

import types
import warnings

import torch

from lobs.base.warning import warn


def caught(call):
    """The one warning of a call."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    (entry,) = found
    return entry


def test_a_warning_points_to_the_first_line_outside_of_the_library():
    def direct():
        warn("something")

    entry = caught(direct)
    assert (entry.filename, entry.lineno) == (__file__, direct.__code__.co_firstlineno + 1)
    assert (str(entry.message), entry.category) == ("something", UserWarning)


def test_lines_of_the_library_and_of_torchs_decorators_are_passed_over():
    module = types.ModuleType("lobs.made_up")
    module.warn = warn
    exec("def outer():\n    inner()\n\n\ndef inner():\n    warn('deep')\n", module.__dict__)
    decorated = torch.no_grad()(module.outer)

    def caller():
        decorated()

    entry = caught(caller)
    assert (entry.filename, entry.lineno) == (__file__, caller.__code__.co_firstlineno + 1)


def test_a_library_whose_name_only_begins_alike_is_somebody_elses():
    module = types.ModuleType("lobster")
    module.warn = warn
    exec(compile("def call():\n    warn('theirs')\n", "lobster.py", "exec"), module.__dict__)
    assert caught(module.call).filename == "lobster.py"
