"""Belsley's diagnostics of Longley's data, which are published, and the order made of them.

Condition indices of Longley's data with intercept, columns scaled to length 1: 1, 9.14, 12.26,
25.34, 230.4, 1048, 43275, as in the manuals of several packages. statsmodels prints 56240.87 where
the intercept is left as it is (its chapter on ordinary least squares).
"""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from torch import nn

from parameter_ordering.paper.experiments.models import binary_cross_entropy, squared_error
from parameter_ordering.paper.orders.belsley import belsley, condition_indices, removal
from parameter_ordering.paper.orders.posterior import nats


@pytest.fixture
def longley():
    """Intercept, GNP deflator, GNP, unemployed, armed forces, population, year; (16, 7)."""
    return sm.add_constant(sm.datasets.longley.load_pandas().exog).to_numpy()


def test_published_condition_indices_of_longleys_data(longley):
    indices, _ = condition_indices(longley.T @ longley)
    published = [1, 9.142, 12.26, 25.34, 230.4, 1048, 43275]
    np.testing.assert_allclose(indices, published, rtol=1e-3)
    scaled = longley / np.linalg.norm(longley, axis=0)
    scaled[:, 0] = 1.0
    assert np.linalg.cond(scaled) == pytest.approx(56240.87, rel=1e-5)


def test_shares_are_those_of_the_variance_of_least_squares(longley):
    """Without the component of an index the variance of a coefficient would be so much smaller."""
    indices, shares = condition_indices(longley.T @ longley)
    scaled = longley / np.linalg.norm(longley, axis=0)
    _, singular, right = np.linalg.svd(scaled, full_matrices=False)
    parts = (right.T / singular) ** 2  # (k, j)
    np.testing.assert_allclose(shares, (parts / parts.sum(1, keepdims=True)).T, atol=1e-6)
    np.testing.assert_allclose(indices, singular[0] / singular, rtol=1e-6)
    # The intercept and the year make up the near dependency of the largest index.
    assert set(np.flatnonzero(shares[-1] > 0.9)) >= {0, 6}


def slow_removal(precision):
    """Singular values and shares anew at each step."""
    left, order = list(range(len(precision))), []
    while left:
        _, shares = condition_indices(precision[np.ix_(left, left)])
        order.append(left.pop(int(shares[-1].argmax())))
    return order


def test_the_order_is_that_of_diagnostics_done_anew(longley):
    scaled = longley / np.linalg.norm(longley, axis=0)
    assert removal(longley.T @ longley)[:-2] == slow_removal(scaled.T @ scaled)[:-2]
    x = np.random.default_rng(0).normal(size=(30, 12)) @ np.random.default_rng(1).normal(
        size=(12, 12)
    )
    assert removal(x.T @ x)[:-2] == slow_removal(x.T @ x)[:-2]


def test_of_two_copies_one_goes_first_and_then_nothing_is_collinear():
    x = np.random.default_rng(0).normal(size=(100, 6))
    x[:, 5] = x[:, 2] + 1e-3 * x[:, 5]
    order = removal(x.T @ x)
    assert order[0] in (2, 5)
    assert condition_indices(x.T @ x)[0].max() > 100
    rest = np.delete(x, order[0], axis=1)
    assert condition_indices(rest.T @ rest)[0].max() < 3


@pytest.mark.parametrize("loss", [squared_error, binary_cross_entropy])
def test_the_curvature_is_that_of_gauss_and_newton_and_the_prior(loss, own_training):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double() for _ in range(2)]
    x = torch.randn(40, 3).double()
    y = (x.sum(-1) > 0).double()
    training = own_training(models, x, y, t0=1, loss=loss)
    scores = belsley(training)
    for run, model in enumerate(models):
        rows = []
        for each in x:
            model.zero_grad()
            model(each[None]).sum().backward()
            rows.append(torch.cat([w.grad.flatten() for w in model.parameters()]))
        J, output = torch.stack(rows), model(x)[:, 0].detach()
        h = (
            torch.full_like(output, 2.0)
            if loss is squared_error
            else output.sigmoid() * (1 - output.sigmoid())
        )
        scale = nats(training)[run, 0] if loss is squared_error else 1.0
        w = torch.cat([w.detach().flatten() for w in model.parameters()])
        precision = scale * (J.T * h) @ J + torch.eye(len(w)) / w.square().mean()
        dead = (J == 0).all(0).numpy()
        order = removal(precision.numpy(), first=dead)
        found = torch.cat([scores[n][run].flatten() for n in scores]).argsort().tolist()
        assert found[:-2] == order[:-2]  # the last two are tied


def test_many_parameters_are_refused(own_training):
    net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))
    training = own_training([net], torch.randn(8, 30), torch.randn(8), t0=1)
    with pytest.raises(ValueError, match="641 parameters are too many"):
        belsley(training)
