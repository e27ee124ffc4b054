"""Errors of a network against a count by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.classifier import data, network
from lobs_paper.data.splits import Split
from lobs_paper.training.evaluation import batch_size, error_percent, errors, output_error


@pytest.mark.parametrize("classes", [7, 120])
def test_top_1_and_top_5_errors_are_those_of_a_count(classes):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
    split = Split(torch.randint(0, 256, (90, 3, 4), dtype=torch.uint8), torch.randint(0, 5, (90,)))
    with torch.no_grad():
        ranks = network(split[:][0]).argsort(1, descending=True)
    wrong1 = sum(label not in row[:1].tolist() for row, label in zip(ranks, split.labels.tolist(), strict=True))
    wrong5 = sum(label not in row[:5].tolist() for row, label in zip(ranks, split.labels.tolist(), strict=True))
    found = errors(network, split)
    assert found.top1 == error_percent(network, split) == pytest.approx(100 * wrong1 / 90)
    if classes == 7:
        assert found.named("test_error_percent") == {"test_error_percent": found.top1}
    else:
        assert found.top5 == pytest.approx(100 * wrong5 / 90)
        assert found.named("error_before_percent").keys() == {"error_before_percent", "top5_error_before_percent"}


def test_with_a_label_per_pixel_an_image_counts_by_its_share_of_wrong_ones():
    torch.manual_seed(0)
    network = nn.Conv2d(3, 120, 1)
    split = Split(torch.randint(0, 256, (9, 3, 4, 5), dtype=torch.uint8), torch.randint(0, 5, (9, 4, 5)))
    with torch.no_grad():
        wrong = (network(split[:][0]).argmax(1) != split.labels).double()
    assert errors(network, split).top1 == pytest.approx(100 * float(wrong.mean()))
    assert 0 <= errors(network, split).top5 <= errors(network, split).top1


def test_outputs_that_do_not_go_with_the_labels_are_refused():
    network, split = nn.Conv2d(3, 7, 1), Split(torch.zeros(2, 3, 4, 5, dtype=torch.uint8), torch.zeros(2).long())
    with pytest.raises(ValueError, match=r"for labels \(2,\), and the network gives \(2, 7, 4, 5\) torch.float32"):
        errors(network, split)


@pytest.mark.parametrize("change", [lambda outputs: outputs > 0, lambda outputs: outputs.to(torch.complex64)])
def test_outputs_without_an_order_are_refused(change):
    with pytest.raises(ValueError, match=r"the network's outputs are torch.*, expected are floating-point numbers"):
        errors(Changed(change), data(6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("classes", [3, 150])
def test_outputs_without_a_largest_one_are_wrong_answers(value, classes):
    split = replace(data(6), labels=torch.zeros(6, dtype=torch.long))  # the class that argmax takes of NaN
    spoiled = Changed(lambda outputs: torch.full((len(outputs), classes), value))
    found = errors(spoiled, split)
    assert (found.top1, found.top5) == (100, None if classes == 3 else 100)


def test_an_answer_that_is_ruled_out_is_none():
    masked = Changed(lambda outputs: outputs.index_fill(1, torch.tensor([1]), -float("inf")))
    assert errors(masked, data(6)).top1 >= 100 / 3


class Changed(nn.Module):
    """A network whose outputs a function changes."""

    def __init__(self, change):
        super().__init__()
        self.network, self.change = network(), change

    def forward(self, x):
        return self.change(self.network(x))


def test_large_images_are_measured_few_at_a_time():
    labels = torch.zeros(3, dtype=torch.long)
    assert batch_size(Split(torch.zeros(3, 28, 28, dtype=torch.uint8), labels)) == 250
    assert batch_size(Split(torch.zeros(3, 3, 224, 224, dtype=torch.uint8), labels)) == 19


def test_the_error_counts_wrong_answers_and_leaves_the_mode_alone():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    split = data(10)
    model.train()
    with torch.no_grad():
        expected = sum(int(model.eval()(split[[i]][0]).argmax() != split.labels[i]) for i in range(10))
    model.train()
    assert error_percent(model, split) == 10 * expected
    assert model.training


def test_the_output_error_is_the_root_mean_squared_norm():
    dense, pruned, split = network(), network(1), data(50)
    inputs = split[slice(None)][0]
    with torch.no_grad():
        expected = ((dense(inputs) - pruned(inputs)).double().square().sum(1).mean()) ** 0.5
    assert output_error(dense, pruned, split) == pytest.approx(float(expected), rel=1e-6)
    assert output_error(dense, dense, split) == 0
