"""Trainings that an order looks at: of an experiment, or of a model and data of one's own."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from parameter_ordering.ensemble import stack
from parameter_ordering.paper.experiments.models import squared_error


def own_training(models, x, y, *, t0, lr=0.01, loss=squared_error):
    """Models (one a run) that see all objects x (m, n) in each of t0 iterations; at their start."""
    model = stack(models)
    x, y = x[None, None], y[None, None]
    return SimpleNamespace(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=lr),
        start={name: w.detach().clone() for name, w in model.named_parameters()},
        covariance=SimpleNamespace(t=t0),
        x=x,
        y=y,
        loss=loss,
        gaussian=loss is squared_error,
        replay=lambda: itertools.repeat((x, y)),
        own_seeds=list(range(len(models))),
    )


@pytest.fixture(name="own_training")
def _own_training():
    return own_training
