"""What can be asked for by name, against the classes themselves."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lobs
from lobs.registry import (
    ALLOCATION_ALIASES,
    ALLOCATION_WITH_BATCHES,
    ALLOCATIONS,
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


def test_aliases_stand_for_allocations():
    assert {*ALLOCATION_ALIASES, *ALLOCATION_WITH_BATCHES} == {"global"}
    named = {*ALLOCATION_ALIASES.values(), *ALLOCATION_WITH_BATCHES.values(), *MEASURING_ALLOCATIONS}
    assert named <= ALLOCATIONS.keys()
    assert not named & ALLOCATION_ALIASES.keys()


def test_an_unknown_name_is_shown_with_those_that_are_known():
    assert unknown_name("colour", 3, {"red": 1, "blue": 2}) == "unknown colour 3: accepted are red, blue"


def test_the_tables_can_be_read_without_torch():
    code = "import sys, lobs.registry; assert lobs.registry.METHODS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
