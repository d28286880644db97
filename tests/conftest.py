"""One thread, fixed seeds: a test gives the same result on every run of one machine."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
