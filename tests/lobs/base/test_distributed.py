"""Two processes with a share of the batches each: the statistics of one, and no process waits for one that failed."""

from __future__ import annotations

import pytest
import torch

import lobs
from helpers.two_processes import SAMPLES, batches, network, process, share
from lobs.calibration.accumulator import Reservoir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes wrote; the last case shows that the group still works after the failures."""
    folder = tmp_path_factory.mktemp("processes")
    cases = ["an empty share", "a value that is not finite", "both"]
    torch.multiprocessing.spawn(process, args=(folder, cases), nprocs=2)
    return folder


def test_two_processes_give_the_statistics_of_one(folder):
    alone = lobs.collect_statistics(network(), batches(), loss="cross_entropy", keep_samples=SAMPLES)
    first, second = (lobs.Statistics.load(folder / f"both{rank}") for rank in (0, 1))
    assert list(first) == list(second) == list(alone)
    for name, expected in alone.items():
        found = first[name]
        for field in ("samples", "inputs", "bias", "last"):
            assert getattr(found, field) == getattr(expected, field) == getattr(second[name], field)
        for field in ("second_moment", "zero_fraction", "loss_curvature"):
            torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-14, atol=1e-15)
            assert torch.equal(getattr(found, field), getattr(second[name], field))


def rows(statistics, name):
    """The kept input vectors of a layer, each as one tuple."""
    kept = statistics[name].inputs_sample
    return [tuple(row) for row in (kept if kept.dim() == 2 else kept.movedim(0, 1).flatten(1)).tolist()]


def test_the_sample_is_drawn_from_both_shares_and_is_the_same_in_both_processes(folder):
    everything = lobs.collect_statistics(network(), batches(), keep_samples=10**6)
    parts = [lobs.collect_statistics(network(), share(rank, "both"), keep_samples=10**6) for rank in (0, 1)]
    first, second = (lobs.Statistics.load(folder / f"both{rank}") for rank in (0, 1))
    for name in everything:
        found = rows(first, name)
        assert found == rows(second, name)
        assert len(found) == len(set(found)) == SAMPLES
        assert set(found) <= set(rows(everything, name))
        assert all(set(found) & set(rows(part, name)) for part in parts)


def test_combined_reservoirs_keep_the_largest_keys(monkeypatch):
    import lobs.calibration.accumulator

    one, two = Reservoir(5, seed=0), Reservoir(5, seed=1)
    one.add(torch.arange(20.0)[None, :, None])
    two.add(torch.arange(20.0, 50.0)[None, :, None])
    keys = {float(value): float(key) for each in (one, two) for key, value in zip(each.keys, each.kept[0], strict=True)}
    expected = sorted(keys, key=keys.get, reverse=True)[:5]
    monkeypatch.setattr(lobs.calibration.accumulator, "gathered", lambda own: [own, (two.keys, two.kept)])
    one.combine()
    assert one.rows().flatten().tolist() == expected


@pytest.mark.parametrize(
    ("case", "messages"),
    [
        ("an empty share", ["process 1 failed: ValueError: no calibration batch", "no calibration batch"]),
        ("a value that is not finite", ["layer '0': its calibration inputs hold NaN"] * 2),
    ],
)
def test_where_one_process_fails_both_raise(folder, case, messages):
    for rank, message in enumerate(messages):
        assert (folder / f"{case}{rank}").read_text().startswith(message)


def test_distributed_needs_a_process_group():
    with pytest.raises(ValueError, match="distributed=True needs an initialised process group"):
        lobs.collect_statistics(network(), batches(), distributed=True)
