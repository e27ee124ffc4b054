"""The configuration: what is accepted, what a mistake says, and which stage reads what."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from lobs.allocation.loss_curves import resolved
from lobs_paper.config import schema as schema_module
from lobs_paper.config.checks import accepted, validate
from lobs_paper.config.compose import config_dir, load, points, say_unread
from lobs_paper.config.errors import ConfigError
from lobs_paper.config.requested import runs_network
from lobs_paper.config.stage_parts import STAGE_KEYS, check_part, stage_config


def test_the_papers_densities_are_the_defaults_of_their_methods():
    assert load([])["density"] == 0.07
    assert load(["method=magnitude"])["density"] == 0.08
    assert load(["method=magnitude", "density=0.2"])["density"] == 0.2


def test_a_tolerance_takes_the_place_of_the_density():
    config = load(["tolerance=0.1"])
    assert (config["density"], config["tolerance"]) == (None, 0.1)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (["densty=0.1"], r"densty=0.1.*did you mean density\?.*accepted: name, seed"),
        (["+densty=0.1"], r"densty=0.1.*did you mean density\?"),
        (["method=lob"], r"method=lob is not accepted: one of .*\blobs,"),
        (["experiment=lenet3"], r"experiment=lenet3 is not accepted: one of .*lenet300"),
        (["optimiser/x=adam"], r"unknown key optimiser/x='adam'"),
        (["density=7"], r"density=7.0 is not accepted: the share of weights kept, a number from 0 to 1"),
        (["density=nan"], r"density=nan is not accepted"),
        (["density=abc"], r"density: Value 'abc'.*accepted: the share"),
        (["tolerance=-1"], r"tolerance=-1.0 is not accepted: the tolerable error"),
        (["tolerance=0.1", "density=0.1"], r"density=0.1 and tolerance=0.1: give exactly one"),
        (["flops=2"], r"flops=2.0 is not accepted: the share of multiply-adds kept"),
        (["size=10000", "flops=0.1"], r"flops=0.1 and size=10000: give exactly one"),
        (["method.limits.fc3=0.1"], r"method.limits=\{'fc3': 0.1\} is not accepted: \[least, most\]"),
        (["density_grid=[]"], r"density_grid=\[\] is not accepted: a list of densities, or null"),
        (["method.correct=all"], r"method.correct='all' is not accepted: one of none, bias"),
        (["density=null"], r"no budget: give exactly one of density, tolerance, flops, size"),
        (["+method.foo=1"], r"unknown key method.foo=1: accepted: name, solver"),
        (["method.solver=obss"], r"method.solver='obss' is not accepted: one of lobs"),
        (["method.options.damping=abc"], r"method.options.damping='abc' is not accepted by method.solver=lobs: float"),
        (["method.options.damping=true"], r"method.options.damping=True is not accepted by method.solver=lobs: float"),
        (["method.options.damping=nan"], r"method.options.damping=nan is not accepted by method.solver=lobs: float"),
        (["method.options.alpha=[1]"], r"alpha=\[1\] is not accepted by method.solver=lobs: float or None"),
        (["method.options.resolve=1"], r"method.options.resolve=1 is not accepted by method.solver=lobs: bool"),
        (
            ["method=exact_obs", "method.options.block=1.5"],
            r"block=1.5 is not accepted by method.solver=exact_obs: int",
        ),
        (["folders.runs="], r"folders.runs='' is not accepted: a folder"),
        (["data.root="], r"data.root='' is not accepted: a folder or an archive"),
        (["threads=100000"], r"threads=100000 is not accepted: a whole number, 1 to 1024"),
        (["devices=1000"], r"devices=1000 is not accepted: a whole number of processes, 1 to 64"),
        (["data.size=1000000"], r"data.size=1000000 is not accepted: a whole number of pixels, 1 to 16384"),
        (["method.options.alpa=1"], r"method.options.alpa=1: did you mean method.options.alpha\?"),
        (["method=magnitude", "method.options.alpha=1"], r"alpha=1: .*accepted by method.solver=magnitude"),
        (["method.retrain.iteration=1"], r"did you mean method.retrain.iterations\?"),
        (["method.retrain.batch_size=0"], r"method.retrain.batch_size=0 is not accepted: a whole number, 1 or more"),
        (["method.allocation=even"], r"method.allocation='even' is not accepted: one of uniform"),
        (["method=lwc", "density=0.3"], r"method.rounds=.* with density=0.3 is not accepted"),
        (["method=lobs_iterative", "tolerance=0.3"], r"method.rounds=.* needs a density"),
        (["method=lwc", "tolerance=0.3"], r"method.allocation=lwc needs a density"),
        (
            ["method=lwc", "method.threshold_scale.fc1=0"],
            r"threshold_scale=\{.*\} is not accepted: a number above 0, or",
        ),
        (["method=lwc", "method.solver=obd"], r"method.solver=obd with method.allocation=lwc is not accepted"),
        (["method=magnitude", "method.allocation=dns"], r"needs both, method.allocation=dns and"),
        (["method.surgery.stop=5"], r"method.surgery=\{'stop': 5\} with method.allocation=fisher"),
        (["method=dns", "method.surgery.stop=0"], r"method.surgery.stop=0 is not accepted: a whole number, 1 or more"),
        (["method=dns", "method.surgery.gama=1"], r"did you mean method.surgery.gamma\?"),
        (["method=dns", "method.rounds=[0.5]"], r"method.rounds=\[0.5\] with method.allocation=dns"),
        (["method.rounds=[0.5,7]"], r"method.rounds=\[0.5, 7.0\] is not accepted"),
        (["methods.lobs.density=2", "density=0.1"], r"methods.lobs.density=2 is not accepted"),
        (["methods.lobs.densty=2"], r"did you mean methods.lobs.density\?"),
        (["seed=null"], r"seed.*accepted: a whole number from 0"),
        (["seed=-1"], r"seed=-1 is not accepted"),
        (["name=a/b"], r"name='a/b' is not accepted: a name of letters"),
        (["device=tpu"], r"device='tpu' is not accepted: one of auto, cpu, cuda"),
        (["model.hiden=[3]"], r"unknown key model.hiden"),
        (["train.learning_rate=0"], r"train.learning_rate=0.0 is not accepted: a number above 0"),
        (["data.name=cifar"], r"data.name='cifar' is not accepted: one of mnist"),
        (["density=0.1,0.2"], r"density=0.1,0.2 gives several values: add -m"),
        (["~density"], r"no key can be removed"),
        (["density"], r"'density' cannot be read: write key=value"),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_accepted(override, expected):
    with pytest.raises(ConfigError) as error:
        load(override)
    assert re.search(expected, str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": True}, "seed=True is not accepted: a whole number from 0 to 4294967295"),
        ({"threads": 1.5}, "threads=1.5 is not accepted: a whole number, 1 to 1024"),
        ({"data": {"mean": ["x"]}}, "data.mean=['x'] is not accepted: a list of numbers: one per channel"),
        ({"data": {"crop_scale": [0.5, 0.2]}}, "data.crop_scale=[0.5, 0.2] is not accepted: [least, most] share of"),
        ({"train": 3}, "train=3 is not accepted: a mapping of optimizer, learning_rate"),
        ({"train": {"momentum": 1.0}}, "train.momentum=1.0 is not accepted: a number from 0 to below 1"),
        ({"train": {"momentum": float("inf")}}, "train.momentum=inf is not accepted"),
        ({"folders": {"data": None}}, "folders.data=None is not accepted: a folder"),
        ({"methods": {"lobs": 3}}, "methods.lobs=3 is not accepted: a mapping of density, options"),
    ],
)
def test_a_resolved_files_values_are_checked_for_their_types_too(change, expected):
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}"):
        validate(change)


def leaves(schema, prefix=""):
    for entry in fields(schema):
        kind = getattr(schema_module, str(entry.type), None)
        yield from leaves(kind, f"{prefix}{entry.name}.") if is_dataclass(kind) else [prefix + entry.name]


def test_every_key_says_what_it_accepts():
    keys = list(leaves(schema_module.Config))
    assert {"density", "train.momentum", "method.limits", "folders.output"} <= {*keys}
    assert not [key for key in keys if not accepted(key)]


def test_net_trim_never_measures_pruned_networks_to_share_its_budget_out():
    """Every network tried would cost a convex program per layer; `global` does so where a method runs in sequence."""
    for method in ("net_trim", "net_trim_cascade"):
        chosen = load([f"method={method}"])["method"]
        assert resolved(chosen["allocation"], measurable=runs_network(chosen)) == "relative"


def test_open_mappings_take_new_keys_without_a_plus():
    assert "alpha" not in load([])["method"]["options"]
    assert load(["method.options.alpha=1e6"])["method"]["options"]["alpha"] == 1e6
    assert "iterations" not in load([])["method"]["retrain"]
    assert load(["method.retrain.iterations=3"])["method"]["retrain"]["iterations"] == 3


def test_retraining_given_by_hand_wins_over_the_methods_own():
    assert stage_config(load(["method=magnitude"]), "retrain")["retrain"]["iterations"] == 4000
    by_hand = load(["method=magnitude", "retrain.iterations=7"])
    assert stage_config(by_hand, "retrain")["retrain"]["iterations"] == 7


def test_every_stages_part_is_valid_by_itself():
    for method in ("lobs", "lobs_iterative", "magnitude", "lwc", "dns", "random"):
        config = load([f"method={method}"])
        for stage in STAGE_KEYS:
            validate(stage_config(config, stage))


@pytest.mark.parametrize(
    ("stage", "key"),
    [("train", "seed"), ("prune", "method.solver"), ("prune", "density"), ("retrain", "retrain"), ("track", "track")],
)
def test_a_part_that_lacks_a_key_is_refused(stage, key):
    part = stage_config(load([]), stage)
    check_part(stage, part)
    *parents, leaf = key.split(".")
    node = part
    for parent in parents:
        node = node[parent]
    del node[leaf]
    with pytest.raises(ConfigError, match=f"key {key} is missing"):
        check_part(stage, part)


@pytest.mark.parametrize(
    ("stage", "words", "left_out"),
    [
        ("collect", ["experiment=lenet5", "method=obd", "collect.images=9", "seed=1"], "method=obd"),
        ("train", ["train.epochs=1", "retrain.iterations=3", "density=0.5"], "retrain.iterations=3 density=0.5"),
        ("prune", ["density=0.5", "methods.lobs.correct=none", "methods.obd.correct=none"], "methods.obd.correct=none"),
        ("prune", ["methods.default.density=0.5", "method.limits.fc3=[0,1]", "data.mean=[0.5]"], None),
        ("retrain", ["method.retrain.iterations=3", "retrain.batch_size=3", "method=lobs"], None),
        (
            "prune",
            ["model.weights=x.pt", "data.root=x", "collect.images=9", "retrain.iterations=3"],
            "retrain.iterations=3",
        ),
        ("report", ["seed=1", "folders.runs=x", "track.models=false"], "seed=1"),
    ],
)
def test_what_a_stage_does_not_read_is_said(capsys, stage, words, left_out):
    say_unread(stage, load(words), words)
    said = capsys.readouterr().out
    assert said == (f"lobs {stage}: left out, as this stage does not read it: {left_out}\n" if left_out else "")


@pytest.mark.parametrize("content", ["seed:\t1\n\t- 2", "train:\n  epochs: 1\n  epochs: 2", "name: \xe9"])
def test_a_file_of_conf_that_cannot_be_read_is_named(tmp_path, monkeypatch, content):
    shutil.copytree(CONF, tmp_path / "conf")
    path = tmp_path / "conf/experiment/lenet300.yaml"
    path.write_text(f"# @package _global_\n{content}\n", encoding="latin-1")
    monkeypatch.setenv("LOBS_CONF", str(tmp_path / "conf"))
    with pytest.raises(ConfigError, match=r"lenet300.yaml is (not UTF-8|no YAML)") as found:
        load([])
    assert "\n" not in str(found.value)


def test_a_part_with_a_foreign_key_is_refused():
    part = stage_config(load([]), "collect")
    part["collect"]["batchsize"] = 3
    with pytest.raises(ConfigError, match=r"did you mean collect.batch_size"):
        validate(part)


def changed_stages(*overrides, method="lobs"):
    before, after = (load([f"method={method}", *extra]) for extra in ((), overrides))
    changed = [stage for stage in STAGE_KEYS if stage_config(before, stage) != stage_config(after, stage)]
    assert ("factorise" in changed) == ("prune" in changed)  # it does a part of what prune does
    return [stage for stage in changed if stage != "factorise"]


def test_a_value_reaches_exactly_the_stages_that_use_it():
    assert changed_stages("train.epochs=3") == ["train"]
    assert changed_stages("collect.batch_size=7", method="magnitude") == ["collect"]
    assert changed_stages("collect.images=7", method="magnitude") == ["collect", "evaluate"]
    # Its allocation looks at calibration images.
    assert changed_stages("collect.images=7", method="lobs") == ["collect", "prune", "evaluate"]
    assert changed_stages("method.options.alpha=1e5") == ["prune"]
    assert stage_config(load([]), "prune") == stage_config(load(["part=2/3"]), "prune")
    assert changed_stages("retrain.iterations=7") == ["retrain"]
    assert changed_stages("density=0.3") == ["prune", "retrain", "evaluate"]
    assert changed_stages("folders.reports=elsewhere") == ["report", "track"]
    assert changed_stages("folders.further_runs=[elsewhere]") == ["report", "track"]
    assert changed_stages("methods.magnitude.density=0.3") == []
    assert changed_stages("method.surgery.stop=9", method="dns") == ["retrain"]
    # Rounds prune and collect again while retraining.
    assert changed_stages("collect.batch_size=7", method="lobs_iterative") == ["collect", "retrain"]


def test_an_experiment_sets_values_for_single_methods_and_the_command_line_wins():
    assert load(["method=lobs_iterative"])["method"]["retrain"]["iterations"] == 107
    by_hand = load(["method=lobs_iterative", "method.retrain.iterations=7"])
    assert by_hand["method"]["retrain"]["iterations"] == 7
    assert (
        stage_config(load(["method=lobs_iterative", "retrain.iterations=7"]), "retrain")["retrain"]["iterations"] == 7
    )
    assert load(["method=lwc", "method.threshold_scale=0.5"])["method"]["threshold_scale"] == 0.5
    assert load(["method=lobs", "methods.lobs.options.resolve=true"])["method"]["options"]["resolve"] is True


def test_points_of_a_sweep_are_the_product_of_its_values():
    found = points(["method=lobs,magnitude", "density=0.05,0.1", "seed=3", "hydra/launcher=joblib"])
    assert found[1] == ["method=lobs", "density=0.1", "seed=3"]
    assert len(found) == 4


def test_the_names_of_the_losses_are_the_librarys():
    from lobs.calibration.loss_hessian import LOSSES as library
    from lobs_paper.config.choices import LOSSES

    assert set(library) == set(LOSSES)


CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBS_CONF", raising=False)
    return tmp_path


def test_somebody_elses_conf_is_left_alone_and_mentioned_once(folder, monkeypatch, capsys):
    (folder / "conf").mkdir()
    (folder / "conf/config.yaml").write_text("defaults:\n  - db: mysql\n  - method: get\nlobs: false\n")
    assert config_dir() == CONF
    assert load([])["density"] == 0.07
    said = capsys.readouterr().err
    assert said.startswith("lobs: conf/config.yaml is another program's")
    assert said.endswith(": LOBS_CONF=conf takes it all the same\n")
    assert said.count("\n") == 1
    monkeypatch.setenv("LOBS_CONF", "conf")
    assert config_dir() == folder / "conf"
    assert not capsys.readouterr().err


def test_a_copy_of_ours_counts_whatever_has_been_changed_in_it(folder, capsys):
    shutil.copytree(CONF, folder / "conf")
    assert config_dir() == folder / "conf"
    path = folder / "conf/config.yaml"
    path.write_text(path.read_text().replace("- schema\n", "-  schema # the types\n").replace("seed: 0", "seed: 7"))
    assert load([])["seed"] == 7
    path.write_text(path.read_text() + "bad: [\n")
    with pytest.raises(ConfigError, match=r"conf/config.yaml is no YAML that can be read: while parsing .*, line"):
        load([])
    assert not capsys.readouterr().err


def test_lobs_conf_names_the_folder(folder, monkeypatch):
    shutil.copytree(CONF, folder / "mine")
    (folder / "mine/config.yaml").write_text((CONF / "config.yaml").read_text().replace("seed: 0", "seed: 7"))
    monkeypatch.setenv("LOBS_CONF", "mine")
    assert load([])["seed"] == 7
    monkeypatch.setenv("LOBS_CONF", "nowhere")
    with pytest.raises(ConfigError, match=r"LOBS_CONF=nowhere holds no config.yaml: name a folder like conf/"):
        load([])
