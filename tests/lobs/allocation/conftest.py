"""What the tests of sharing out begin with."""

import pytest

import lobs
from helpers.networks import X, mlp
from lobs.calibration.batches import CalibrationBatches


@pytest.fixture
def case():
    """A network, its batches and its paths by magnitude."""
    model, batches = mlp(), CalibrationBatches(list(X.split(64)))
    paths = lobs.layer_paths(model, lobs.collect_statistics(model, batches), "magnitude")
    return model, batches, paths
