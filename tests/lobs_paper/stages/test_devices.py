"""Key `devices`: two processes train and collect as one does, one writes, and none waits for one that failed."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.classifier import data
from helpers.stages import SMALL, TRAINED
from helpers.training_processes import fail_in_the_second, fixed_masks, train_all
from lobs.calibration.statistics import Statistics
from lobs_paper.cli import main
from lobs_paper.config.compose import load
from lobs_paper.config.stage_parts import stage_config
from lobs_paper.stages import calibration
from lobs_paper.stages.devices import on_devices

pytestmark = pytest.mark.slow


def stages(devices):
    """The configurations of `lobs collect`, and of `lobs retrain` for the methods that train."""
    words = [*SMALL, f"devices={devices}", f"folders.output=retrained{devices}"]
    return {
        "collect": stage_config(load([*words, f"folders.output=collected{devices}"]), "collect"),
        **{entry[0]: stage_config(load([*words, *entry]), "retrain") for entry in TRAINED},
    }


@pytest.fixture(scope="module")
def trained(project, tmp_path_factory):
    """What one process and two processes left: folders by number of processes, metrics of `retrain` likewise."""
    folders, metrics = {}, {}
    for devices in (1, 2):
        folders[devices] = tmp_path_factory.mktemp(f"devices{devices}")
        config = {"devices": devices, "device": "cpu", "folder": str(folders[devices]), "stages": stages(devices)}
        metrics[devices] = on_devices(train_all, config)["stages"]
    return folders, metrics


def test_training_with_fixed_masks_gives_the_weights_of_one_process(trained):
    folders, _ = trained
    alone, first, second = (load_file(folders[n] / f"masked{rank}") for n, rank in ((1, 0), (2, 0), (2, 1)))
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-5)
    for name, mask in fixed_masks().items():
        assert not first[f"{name}.weight"][~mask].any()


def test_the_curve_is_that_of_one_process(trained):
    folders, _ = trained
    alone, first, second = (
        json.loads((folders[n] / f"curve{rank}").read_text())["points"] for n, rank in ((1, 0), (2, 0), (2, 1))
    )
    assert first == second
    for point, expected in zip(first, alone, strict=True):
        assert point["iteration"] == expected["iteration"]
        assert point["test_error_percent"] == expected["test_error_percent"]
    assert [point["train_loss"] for point in first[1:]] == pytest.approx(
        [point["train_loss"] for point in alone[1:]], rel=1e-5
    )


def test_surgery_cuts_the_same_weights_in_both_processes(trained):
    folders, _ = trained
    first, second, masks = (load_file(folders[2] / file) for file in ("operated0", "operated1", "cut0"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other, alone = load_file(folders[2] / "cut1"), load_file(folders[1] / "cut0")
    for name, mask in masks.items():
        assert torch.equal(mask, other[name])
        assert torch.equal(mask, alone[name])
        assert not first[f"{name}.weight"][~mask].any()


@pytest.mark.parametrize("method", [words[0] for words in TRAINED])
def test_retraining_in_rounds_and_by_surgery_writes_what_one_process_would(trained, project, method):
    _, metrics = trained
    found, expected = metrics[2][method], metrics[1][method]
    assert found["masks_exact"]
    assert found["density"] == expected["density"]
    assert found["iterations"] == expected["iterations"]
    for key in ("error_after_pruning_percent", "error_after_retraining_percent"):
        assert found[key] == pytest.approx(expected[key], abs=1.5)  # 3 of 200 images
    (written,) = (project / "retrained2").rglob(f"{found['method']}/retrain/metrics.json")
    assert json.loads(written.read_text()).items() >= found.items()


def test_collect_writes_the_statistics_of_one_process(trained, project):
    file = "lenet300/seed0/collect/statistics.safetensors"
    alone, shared = (Statistics.load(project / root / file) for root in ("runs", "collected2"))
    for name, expected in alone.items():
        for field in ("second_moment", "zero_fraction"):
            torch.testing.assert_close(getattr(shared[name], field), getattr(expected, field), rtol=1e-14, atol=1e-15)
        assert shared[name].samples == expected.samples
        assert shared[name].inputs_sample.shape == expected.inputs_sample.shape


def test_every_process_needs_a_batch(monkeypatch):
    monkeypatch.setattr(calibration, "rank_and_size", lambda: (0, 3))
    split = data(90)
    assert [len(labels) for _, labels in calibration.own_share(split.batches(20))] == [20, 20]
    with pytest.raises(ValueError, match=r"devices=3 .* 90 .* images in batches of collect.batch_size=45 are 2"):
        calibration.own_share(split.batches(45))


def test_no_process_waits_for_one_that_failed(project):
    with pytest.raises(ValueError, match=r"nowhere.*does not exist yet"):
        on_devices(fail_in_the_second, {"devices": 2, "device": "cpu"})


@pytest.mark.parametrize("value", ["0", "1.5", "all"])
def test_a_number_of_devices_that_makes_no_sense_is_refused(value, capsys):
    assert main(["train", f"devices={value}"]) == 2
    assert "devices" in capsys.readouterr().err


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="devices=2 is not accepted here: this machine has 1 CUDA devices"):
        on_devices(fail_in_the_second, {"devices": 2, "device": "auto"})
