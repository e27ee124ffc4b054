"""What a solver is: its arguments are checked, groups are problems of their own, and names make solvers."""

from dataclasses import dataclass, replace

import pytest
import torch

import lobs
from lobs.solvers import Solver, make
from lobs.solvers.grouped import GroupedPath
from lobs.solvers.magnitude import Magnitude
from lobs.solvers.path import RankedPath
from lobs.solvers.ranking import rank_by_score


def statistics(features=4, groups=1, bias=False):
    torch.manual_seed(0)
    moments = [lobs.LayerStatistics.from_samples(torch.randn(30, features), bias) for _ in range(groups)]
    stacked = torch.stack([layer.second_moment for layer in moments])
    return replace(moments[0], second_moment=stacked if groups > 1 else stacked[0])


@dataclass(frozen=True)
class Noting(Solver):
    """Notes what it is asked for; its path has a state."""

    seen: tuple = ()

    def path(self, weight, statistics):
        SEEN.append((tuple(weight.shape), statistics.groups))
        values = weight[:, : statistics.features].abs()
        path = RankedPath(weight, statistics, *rank_by_score(values, values == 0))
        path.state = {"rank": path.rank}
        return path

    def restore(self, weight, statistics, state):
        return RankedPath(weight, statistics, state["rank"], state["rank"].numel())


class Whole(Noting):
    by_group = False


SEEN = []


def test_groups_are_asked_for_one_by_one_unless_a_solver_takes_them_together():
    weight = torch.randn(6, 4)
    SEEN.clear()
    path = Noting()(weight, statistics(groups=3))
    assert isinstance(path, GroupedPath)
    assert SEEN == [((2, 4), 1)] * 3
    SEEN.clear()
    assert not isinstance(Whole()(weight, statistics(groups=3)), GroupedPath)
    assert SEEN == [((6, 4), 3)]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("solver", [Noting(), Whole()], ids=["by group", "whole"])
def test_a_path_comes_back_from_its_state_without_the_work(solver, groups):
    weight, layer = torch.randn(6, 4), statistics(groups=groups)
    path = solver(weight, layer)
    SEEN.clear()
    again = solver.restored(weight, layer, path.state)
    assert not SEEN
    for count in (0, 5, 24):
        assert all(torch.equal(one, other) for one, other in zip(again.at(count), path.at(count), strict=True))


def test_a_solver_without_a_state_computes_its_path_again():
    weight, layer = torch.randn(6, 4), statistics()
    assert torch.equal(Magnitude().restored(weight, layer, {}).rank, Magnitude()(weight, layer).rank)


def test_a_weight_that_is_learned_is_not_kept_in_a_graph():
    weight = torch.nn.Parameter(torch.randn(6, 4))
    assert not make("magnitude")(weight, statistics()).weight.requires_grad


@pytest.mark.parametrize(
    ("weight", "layer", "message"),
    [
        (torch.ones(2, 5), statistics(), r"shape \(2, 5\) does not fit statistics of 4 inputs: expected \[out, 4\]"),
        (torch.ones(4), statistics(), r"shape \(4,\) does not fit"),
        (torch.ones(2, 4), statistics(bias=True), r"5 inputs \(bias included\): expected \[out, 5\]"),
        (torch.full((2, 4), torch.inf), statistics(), r"shape \(2, 4\) holds NaN or infinite values"),
        (torch.ones(4, 4), statistics(groups=3), "a weight of 4 outputs does not fit statistics of 3 groups"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weight, layer, message):
    with pytest.raises(ValueError, match=message):
        Noting()(weight, layer)


def test_a_name_makes_a_solver_with_its_options():
    assert make("magnitude", pattern="2:4") == Magnitude("2:4")
    with pytest.raises(ValueError, match="unknown method 'base': accepted are lobs"):
        make("base")
    with pytest.raises(ValueError, match="method magnitude: unknown option 'seed': accepted are pattern"):
        make("magnitude", seed=3)
