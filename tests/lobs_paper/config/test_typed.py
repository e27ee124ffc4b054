"""Commands that messages name are those that the user would have typed."""

from __future__ import annotations

from lobs_paper.config.compose import load
from lobs_paper.config.typed import typed, with_typed


def asked(words, *commands):
    """Commands and the stages that they run, completed while something is typed."""
    with typed(words, load(words)):
        return [with_typed(command, command.split()[1]) for command in commands]


def test_a_command_has_what_its_stage_reads_and_says_nothing_twice():
    train = "lobs train experiment=lenet5 seed=1"
    words = ["experiment=lenet5", "density=0.2", "train.learning_rate=0.02", "model.classes=10", "seed=1"]
    assert asked(words, train, f"{train} train.learning_rate=0.1", "lobs prune method=lobs") == [
        f"{train} train.learning_rate=0.02 model.classes=10",
        f"{train} train.learning_rate=0.1 model.classes=10",
        "lobs prune method=lobs experiment=lenet5 density=0.2 model.classes=10 seed=1",
    ]


def test_what_a_shell_would_take_apart_is_quoted():
    assert asked(["density_grid=[0.5,0.1]"], "lobs prune") == ["lobs prune 'density_grid=[0.5,0.1]'"]


def test_nothing_typed_adds_nothing():
    assert with_typed("lobs train seed=0", "train") == "lobs train seed=0"
