"""The inputs of one forward pass: taken, joined, described. How batches become inputs: calibration/test_inputs.py."""

import pytest
import torch
from torch import nn

from lobs.base.network_inputs import Inputs, joined, misfit, run, selected, takes_one

X, Y = torch.arange(12.0).reshape(4, 3), torch.arange(4)


def test_a_tensor_alone_or_inputs_are_run():
    layer = nn.Linear(3, 2)
    assert torch.equal(run(layer, X), layer(X))
    assert torch.equal(run(layer, Inputs((X,), count=4)), layer(X))
    assert torch.equal(run(layer, Inputs((), {"input": X}, 4, None, lambda y: y[0])), layer(X)[0])


def test_some_inputs_are_copies_and_what_cannot_be_divided_stays_whole():
    inputs = Inputs((X, [Y[0], Y[1], Y[2], Y[3]]), {"y": Y, "scale": 2.0}, 4)
    some = inputs.at(torch.tensor([2, 0]))
    assert len(some) == 2
    assert torch.equal(some.args[0], X[[2, 0]])
    assert some.args[1] == [2, 0]
    assert some.kwargs["y"].tolist() == [2, 0]
    assert some.kwargs["scale"] == 2.0
    inputs.first(3).args[0].zero_()
    assert X.any()
    whole = Inputs((X, torch.zeros(7, 2)), {}, 4)
    assert whole.at(torch.tensor([0])) is whole
    assert Inputs((X,), {}, 4, lambda model, batch: batch).first(1).args[0].shape == X.shape


def test_tensors_of_one_kind_are_joined_and_nothing_else():
    parts = [Inputs((X,), {"y": Y}, 4), Inputs((X[:2],), {"y": Y[:2]}, 2)]
    (together,) = joined(parts)
    assert len(together) == 6
    assert torch.equal(together.args[0], torch.cat([X, X[:2]]))
    assert torch.equal(together.kwargs["y"], torch.cat([Y, Y[:2]]))
    for other in (
        Inputs((X.double(),), {"y": Y}, 4),
        Inputs((X[:, :2],), {"y": Y}, 4),
        Inputs((X,), {}, 4),
        Inputs(([X, X],), {"y": Y}, 2),
        Inputs((X,), {"y": Y}, 4, lambda model, batch: batch),
    ):
        assert len(joined([parts[0], other])) == 2


@pytest.mark.parametrize(
    ("forward", "one", "two"),
    [
        (lambda x: x, True, False),
        (lambda x, y=None: x, True, True),
        (lambda x, y: x, False, True),
        (lambda *, x: x, False, False),
        (lambda *args, **kwargs: args, True, True),
    ],
)
def test_the_forward_says_what_it_takes(forward, one, two):
    model = nn.Module()
    model.forward = forward
    assert takes_one(model) is one
    assert misfit(model, Inputs((X, X))) is not two
    assert not misfit(model, Inputs((X, X), call=lambda model, batch: batch))


def test_inputs_describe_themselves():
    inputs = Inputs((X, [X, X, X, X], 3), {"mask": Y, "more": {"a": X, "b": ()}})
    assert str(inputs) == (
        "(4, 3) torch.float32, list of (4, 3) torch.float32, (4, 3) torch.float32, (4, 3) torch.float32, ..., int, "
        "mask=(4,) torch.int64, more=dict of a=(4, 3) torch.float32, b=empty tuple"
    )


def test_a_loss_needs_one_tensor():
    assert Inputs((X,)).alone is X
    for other in (Inputs((X, X)), Inputs((), {"x": X}), Inputs(([X],)), Inputs((X,), call=lambda model, batch: batch)):
        with pytest.raises(ValueError, match="needs one input tensor in every batch and no call=, got"):
            _ = other.alone


def test_a_named_tuple_has_its_names():
    values, _ = found = torch.sort(Y)
    assert selected(found, "values") is values
