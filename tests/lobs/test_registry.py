"""What can be asked for by name, against the classes themselves."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lobs
from lobs.allocation.loss_curves import resolved
from lobs.registry import (
    ALLOCATIONS,
    GLOBAL_CANDIDATES,
    MEASURING_ALLOCATIONS,
    METHODS,
    unknown_name,
)


def test_registered_options_are_the_constructors():
    for method in METHODS.values():
        solver = getattr(import_module(method.module), method.solver)
        assert tuple(inspect.signature(solver).parameters) == method.options


def test_every_solvers_file_is_a_method_and_the_papers_stands_first():
    folder = Path(lobs.registry.__file__).parent / "solvers"
    written = [path.stem for path in folder.glob("[a-z]*.py") if "line: ClassVar" in path.read_text(encoding="utf-8")]
    assert next(iter(METHODS)) == "lobs"
    assert list(METHODS)[1:] == sorted({*written} - {"lobs", "base"})


@pytest.mark.parametrize("name", METHODS)
def test_what_is_read_from_a_file_is_what_its_class_says(name):
    method = METHODS[name]
    solver = getattr(import_module(method.module), method.solver)
    assert (method.line, method.needs) == (solver.line, solver.needs)
    assert issubclass(solver, lobs.solvers.Solver)


def test_what_global_chooses_from_are_allocations_that_measure():
    assert {*GLOBAL_CANDIDATES} <= {*MEASURING_ALLOCATIONS} <= ALLOCATIONS.keys()
    assert not {"global", "uniform"} & {*MEASURING_ALLOCATIONS}


def test_global_is_no_allocation_of_its_own():
    assert {resolved(name, measurable) for name in ALLOCATIONS for measurable in (True, False)} == {*ALLOCATIONS} - {
        "global"
    }
    assert (resolved("global", True), resolved("global", False)) == (GLOBAL_CANDIDATES[0], "relative")


def test_an_unknown_name_is_shown_with_those_that_are_known():
    assert unknown_name("colour", 3, {"red": 1, "blue": 2}) == "unknown colour 3: accepted are red, blue"


def test_the_tables_can_be_read_without_torch():
    code = "import sys, lobs.registry; assert lobs.registry.METHODS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
