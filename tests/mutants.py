"""Tests the tests: a seeded sample of cosmic-ray's mutants of the library, each against the tests of its room.

A mutant is one small change of one file. First the file's own tests are run, and where they all pass the room's. What
passes these as well has survived: either a test is missing, or the change changes nothing that anybody could notice;
which of the two stands in docs/testing.md. All of it happens in a copy of `src`; a process that has imported torch
already is forked for every mutant. Writes reports/mutants.md.

    python tests/mutants.py --sample 4 --seed 0 --rooms layers solvers
"""

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import sys
import time
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis  # noqa: F401, before the forks, as the next ones
import numba  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

from test_layout import TOGETHER

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("layers", "calibration", "solvers", "allocation", "schedule", "bounds", "export")
# These take arguments of their own.
LEFT_OUT = ("core/VariableReplacer", "core/VariableInserter")
KILLED, SURVIVED, ENDLESS = "killed", "survived", "killed by its time"


def files(room):
    """A room's source files."""
    place = ROOT / "src" / "lobs" / room
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def own_tests(file):
    """The tests that mirror a file; None where it has none of its own."""
    inside = file.relative_to(ROOT / "src").with_suffix("")
    mirror = ROOT / "tests" / f"{TOGETHER.get(str(inside), inside.with_name(f'test_{inside.name}'))}.py"
    return mirror if mirror.exists() else None


def room_tests(room):
    """All tests of a room."""
    place = ROOT / "tests" / "lobs" / room
    return place if place.is_dir() else place.with_name(f"test_{room}.py")


class WithoutAnnotations(ast.NodeTransformer):
    """What is left of a program when nothing reads its annotations."""

    def visit_arg(self, node):
        """An argument without its type."""
        node.annotation = None
        return node

    def visit_FunctionDef(self, node):
        """A function without its result's type."""
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node):
        """A variable without its type."""
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def meaning(code):
    """A program as it runs, for comparisons; None where it is none (an operator that does not fit its place)."""
    try:
        return ast.dump(WithoutAnnotations().visit(ast.parse(code)))
    except SyntaxError:
        return None


@cache
def places(file):
    """All mutants of a file: operator and occurrence."""
    nodes = list(ast_nodes(get_ast(file.read_text())))
    operators = {name: get_operator(name)() for name in sorted(set(operator_names()) - set(LEFT_OUT))}
    counts = {
        name: sum(1 for node in nodes for _ in operator.mutation_positions(node))
        for name, operator in operators.items()
    }
    return [(name, occurrence) for name, count in counts.items() for occurrence in range(count)]


def drawn(room, seed):
    """Mutants of a room in random order: a file by its length, then one of its mutants.

    What changes nothing but annotations is no mutant.

    Yields:
        File, operator, and the mutated program.
    """
    numbers = random.Random(f"{seed} {room}")
    found = [file for file in files(room) if len(file.read_text().splitlines()) > 10]
    lengths = [len(file.read_text().splitlines()) for file in found]
    seen = set()
    while True:
        file = numbers.choices(found, lengths)[0]
        name, occurrence = numbers.choice(places(file))
        mutated = mutate_code(file.read_text(), get_operator(name)(), occurrence)
        if mutated not in seen and meaning(mutated) not in (None, meaning(file.read_text())):
            seen.add(mutated)
            yield file, name, mutated


def change(file, mutated):
    """The line that a mutant changes, before and after."""
    lines = difflib.unified_diff(file.read_text().splitlines(), mutated.splitlines(), lineterm="", n=0)
    changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    number = next(
        n
        for n, (a, b) in enumerate(zip(file.read_text().splitlines(), mutated.splitlines(), strict=False), 1)
        if a != b
    )
    return number, [line[1:].strip() for line in changed]


def passes(tests, limit):
    """Whether tests pass in a process of their own; None where they take longer than so many seconds."""
    child = os.fork()
    if not child:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os.setsid()
        code = 1
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", str(tests)]))
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@cache
def seconds(tests):
    """How long tests take where nothing is mutated."""
    start = time.monotonic()
    if not passes(tests, 3600):
        raise SystemExit(f"{tests} fails without any mutant")
    return time.monotonic() - start


def fate(room, file, mutated, copy):
    """What becomes of a mutant."""
    place = copy / file.relative_to(ROOT / "src")
    for tests in dict.fromkeys([own_tests(file) or room_tests(room), room_tests(room)]):
        limit = 3 * seconds(tests) + 30
        place.write_text(mutated)
        try:
            result = passes(tests, limit)
        finally:
            shutil.copy2(file, place)
        if not result:
            return ENDLESS if result is None else KILLED
    return SURVIVED


def report(seed, results):
    """The page: a table by rooms, and every survivor."""
    rows = ["| room | mutants | killed | |", "| --- | ---: | ---: | ---: |"]
    everything = [each for found in results.values() for each in found]
    for room, found in {**results, "all": everything}.items():
        if not found:
            continue
        killed = sum(result != SURVIVED for *_, result in found)
        rows.append(f"| {room} | {len(found)} | {killed} | {killed / max(1, len(found)):.0%} |")
    survivors = [
        f"* `{file.relative_to(ROOT)}` line {number}: `{' '.join(lines[: len(lines) // 2])}` became "
        f"`{' '.join(lines[len(lines) // 2 :])}`"
        for file, (number, lines), result in everything
        if result == SURVIVED
    ]
    return "\n".join(
        [
            "# Mutants",
            "",
            f"Written by `make mutants`: some of cosmic-ray's mutants of every room, drawn with seed {seed}, each",
            "against the tests of its room. What the survivors mean: [docs/testing.md](../docs/testing.md).",
            "",
            *rows,
            "",
            "Survivors:",
            "",
            *(survivors or ["none"]),
            "",
        ]
    )


def main():
    """Draw mutants, run the tests, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=20, help="mutants of every room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=ROOMS, choices=ROOMS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="lobs-mutants-") as folder:
        copy = Path(folder) / "src"
        shutil.copytree(ROOT / "src", copy)
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_STORAGE_DIRECTORY": folder}
        sys.path.insert(0, str(copy))
        sys.dont_write_bytecode = True
        os.chdir(ROOT)
        results = {room: [] for room in asked.rooms}
        sources = [drawn(room, asked.seed) for room in asked.rooms]
        for several in islice(zip(*sources, strict=True), asked.sample):  # room by room: it may be stopped at any time
            for room, (file, name, mutated) in zip(asked.rooms, several, strict=True):
                results[room].append((file, change(file, mutated), fate(room, file, mutated, copy)))
                print(room, file.name, name, *results[room][-1][1:], flush=True)
                (ROOT / "reports" / "mutants.md").write_text(report(asked.seed, results))


if __name__ == "__main__":
    main()
