"""What a network's outputs hold, and which distance fits them."""

from collections import namedtuple

import pytest
import torch

from helpers.networks import Answer
from lobs.calibration.outputs import class_logits, fitting_distance, output_tensors, per_input, spreads

A, B, WHOLE = torch.randn(5, 3), torch.randn(5, 2, 2), torch.arange(5)
Named = namedtuple("Named", "first second")


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (A, [A]),
        (WHOLE, []),
        ((A, WHOLE, [B]), [A, B]),
        ({"b": B, "a": {"inside": A}, "loss": None}, [B, A]),
        (Answer(A, B), [A, B]),
        (Named(B, "text"), [B]),
        ("text", []),
        (A.to_sparse(), [A]),
    ],
    ids=["tensor", "integers", "tuple", "mapping", "dataclass", "named tuple", "text", "sparse"],
)
def test_floating_point_tensors_are_found_in_their_order_wherever_they_lie(outputs, expected):
    found = output_tensors(outputs)
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


SOFT = torch.tensor([[0.5, 0.25, 0.25]]).expand(5, 3)


@pytest.mark.parametrize(
    ("outputs", "batch", "expected"),
    [
        (A, A, "kl"),
        (A, (A, WHOLE), "kl"),
        (A, (A, SOFT), "kl"),  # soft labels
        (A, (A, torch.randn(5, 3)), "relative"),  # a regression
        (A, (A, 2 * SOFT), "relative"),
        (A[:, :1], A, "relative"),
        (A.unsqueeze(1), A, "relative"),  # what docs/own-network.md says of a regression
        (B, A, "relative"),
        ((A, B), A, "relative"),
        ({"logits": A, "hits": WHOLE}, A, "kl"),
    ],
)
def test_class_logits_are_compared_by_kl_and_all_else_relatively(outputs, batch, expected):
    assert fitting_distance(outputs, batch) == expected


def test_outputs_without_a_tensor_cannot_be_compared():
    with pytest.raises(ValueError, match="hold no floating-point tensor to compare, got Tensor"):
        fitting_distance(WHOLE, A)
    with pytest.raises(ValueError, match="got NoneType: name them with output="):
        fitting_distance(None, A)


def test_class_logits_may_be_wrapped_but_must_be_one_matrix():
    for outputs in (A, (A,), {"logits": A, "hits": WHOLE}):
        assert class_logits(outputs) is A
    for outputs, shown in (
        (B, r"a tensor of shape \(5, 2, 2\)"),
        ((A, A), r"a tensor of shape \(5, 3\), a tensor of shape \(5, 3\)"),
        ("text", "str"),
    ):
        with pytest.raises(ValueError, match=rf"must be class logits \[images, classes\], got {shown}"):
            class_logits(outputs)


def test_spreads_are_variances_summed_over_an_images_outputs():
    outputs = [(A[:3], B[:3]), (A[3:], B[3:])]
    expected = [float((part - part.mean(0)).square().sum()) / 5 for part in (A, B)]
    assert spreads(outputs, 5) == pytest.approx(expected, rel=1e-5)
    assert spreads([(A[:1],)], 1) == pytest.approx([float(A[:1].square().sum())])


def test_an_output_that_is_the_same_for_all_images_counts_nothing_and_all_of_them_are_refused():
    constant = torch.full((5, 3), 7.0)
    found = spreads([(A, constant)], 5)
    assert found[0] > 0 == found[1]
    with pytest.raises(ValueError, match="outputs are the same for all calibration inputs"):
        spreads([(constant,)], 5)


def test_infinite_logits_do_not_count_and_parts_of_other_shapes_are_taken_as_they_are():
    masked = A.clone()
    masked[:, 0] = -torch.inf
    assert spreads([(masked,)], 5) == pytest.approx(spreads([(A[:, 1:],)], 5))
    ragged = [(torch.ones(2, 3),), (torch.ones(3, 4),)]  # no mean over images of unequal lengths
    assert spreads(ragged, 5) == pytest.approx([(6 + 12) / 5])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (torch.tensor([[1.5, -0.5, 0.0]]).expand(5, 3), "relative"),  # adds up to one, and is no probability
        (SOFT * (1 + 0.9e-3), "kl"),
        (SOFT * (1 + 1.1e-3), "relative"),
        (SOFT * (1 - 1.1e-3), "relative"),
        (torch.tensor([[1.0, 0.0, 0.0]]).expand(5, 3), "kl"),
        (torch.randn(5), "kl"),
        (torch.randn(5, 3).long(), "kl"),
        ("text", "kl"),
    ],
)
def test_soft_labels_are_probabilities(target, expected):
    assert fitting_distance(A, (A, target)) == expected
    assert fitting_distance(A, {"x": A, "labels": target}) == expected


def test_columns_that_are_all_alike_are_no_logits():
    assert fitting_distance(A[:, :1].expand(5, 3), A) == "relative"
    nearly = A[:, :1].repeat(1, 3)
    nearly[4, 2] += 1
    assert fitting_distance(nearly, A) == "kl"
    assert fitting_distance(A[:, :2], A) == "kl"


def test_what_has_an_axis_of_inputs_is_summed_for_each_and_the_rest_shared_out():
    assert torch.equal(per_input(B, 5), B.flatten(1).sum(1))
    assert torch.equal(per_input(A[:, 0], 5), A[:, 0])
    for values in (A, torch.tensor(6.0)):
        torch.testing.assert_close(per_input(values, 4), torch.full((4,), float(values.sum()) / 4))


def test_spreads_need_the_same_tensors_in_every_batch():
    with pytest.raises(ValueError, match="hold other numbers of tensors for other batches"):
        spreads([(A, A), (A,)], 10)
    losses = [(torch.tensor(3.0),), (torch.tensor(4.0),)]  # no axis of images: as they are
    assert spreads(losses, 4) == pytest.approx([25 / 4])
    assert spreads([(A[:1],), (A[1:],)], 5) == pytest.approx([float((A - A.mean(0)).square().sum()) / 5], rel=1e-5)
    far = 1e4 + torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    assert spreads([(far,)], 2) == pytest.approx([1.0])
