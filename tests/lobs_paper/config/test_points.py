"""The points that `-m` checks beforehand are those that Hydra then runs."""

from __future__ import annotations

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from lobs_paper.config.compose import HYDRA_VERSION_BASE, ROOT_CONFIG, config_dir, opened, points
from lobs_paper.config.errors import ConfigError


def task(config):
    return list(HydraConfig.get().overrides.task)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["method=lobs,magnitude", "density=0.05,0.1", "seed=3"], 4),
        (["seed=range(0,3)", "density=range(0.1,0.3,step=0.1)"], 6),
        (["method=glob(exact_obs*,exclude=*_fisher)", "seed=choice(2,1)"], 8),
        (["name='one','two, three'", "density=0.1"], 2),
        (["method='lobs',\"obd\"", "seed=sort(3,1,2)"], 6),
        (["model.hidden=[16,8],[8,4]", "method.options.damping=1,2"], 4),
        (["density=0.1,0.2", "seed=0,1", "density=0.3"], 2),
        (["+sweep=layers", "density=0.5"], 4),
        (["density=0.5"], 1),
    ],
)
def test_the_points_are_those_that_hydra_runs_in_its_order(tmp_path, words, count):
    arguments = [*opened(words), f"hydra.sweep.dir={tmp_path}"]
    with initialize_config_dir(str(config_dir()), version_base=HYDRA_VERSION_BASE):
        batches = GlobalHydra.instance().hydra.multirun(ROOT_CONFIG, task, arguments)
    assert points([*words, f"hydra.sweep.dir={tmp_path}"]) == [job.return_value for batch in batches for job in batch]
    assert len(points(words)) == count


def test_a_sweep_without_an_end_is_refused():
    with pytest.raises(ConfigError, match=r"density=interval\(0,1\) is not accepted: values, range"):
        points(["density=interval(0,1)"])


def test_a_choice_among_files_that_are_not_there_is_refused_quoted_or_not():
    with pytest.raises(ConfigError, match=r"method=lob is not accepted: one of .*lobs"):
        points(["method='lobs','lob'"])
