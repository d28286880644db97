"""One thread, fixed seeds: a test gives the same result on every run of one machine."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

from zlib import crc32

import matplotlib
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, settings

from parameter_ordering.paper.experiments import book_runs

torch.set_num_threads(1)
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,  # a busy machine fails no law
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _look():
    """The style of the book, which a test may set, is not left to the next."""
    with matplotlib.rc_context():
        yield


@pytest.fixture
def double():
    """Numbers are float64 where nothing else is said."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def asked(monkeypatch):
    """The experiments, and methods, whose results the study asks for; these are made up."""
    asked = []

    def results(experiment, method="run"):
        asked.append((experiment, method))
        rng = np.random.default_rng(crc32(repr(experiment).encode()))
        coordinates = {"split": ["train", "test"], "order": ["covariance", "random"]}
        coordinates |= {"run": range(5), "k": [0, 7, 301]}
        if getattr(experiment, "stages", ()):
            coordinates = {"t0": list(experiment.stages)} | coordinates
        loss = rng.lognormal(size=[len(each) for each in coordinates.values()])
        return xr.Dataset({"loss": (list(coordinates), loss.astype(np.float32))}, coordinates)

    monkeypatch.setattr(book_runs, "results", results)
    monkeypatch.setattr(book_runs, "reached", lambda curve, share: round(10_000 * (1 - share)))
    return asked
