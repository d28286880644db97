"""Lasso and elastic net against proximal gradient descent, penalty by penalty."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import enet_path, lasso_path
from torch import nn

from parameter_ordering.paper.experiments.models import binary_cross_entropy
from parameter_ordering.paper.orders import lasso as module
from parameter_ordering.paper.orders.lasso import elastic_net, entry, lasso

N, M = 6, 60
DEAD = 4


def sample(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(M, N))
    x[:, 1] += x[:, 0]
    x[:, DEAD] = 0
    y = x @ np.array([2.0, -1.0, 0.5, 0.2, 3.0, 0.0]) + 0.3 * rng.normal(size=M)
    return x, y


def linear():
    return nn.Sequential(nn.Linear(N, 1, bias=False)).double()


def training_of(own_training, y=None, **settings):
    x, values = sample()
    y = values if y is None else y(values)
    return own_training([linear()], torch.tensor(x), torch.tensor(y), t0=1, **settings)


def slow_path(gradient, lipschitz, penalties, ratio=1.0, steps=20_000):
    """Proximal gradient descent from 0, anew for every penalty."""
    weights = []
    for penalty in penalties:
        w = np.zeros(N)
        step = 1 / (lipschitz + penalty * (1 - ratio))
        for _ in range(steps):
            v = w - step * (gradient(w) + penalty * (1 - ratio) * w)
            new = np.sign(v) * np.maximum(np.abs(v) - step * penalty * ratio, 0)
            if np.array_equal(new, w):
                break
            w = new
        weights.append(w)
    path = np.stack(weights, -1)
    return np.where(np.abs(path) < 1e-12, 0, path)  # rounding at the largest penalty


@pytest.mark.parametrize(("score", "ratio"), [(lasso, 1.0), (elastic_net, 0.5)])
def test_features_enter_as_on_the_slow_path(score, ratio, own_training):
    x, y = sample()
    penalties = (lasso_path(x, y) if ratio == 1 else enet_path(x, y, l1_ratio=ratio))[0]
    lipschitz = np.linalg.eigvalsh(x.T @ x / M).max()
    path = slow_path(lambda w: x.T @ (x @ w - y) / M, lipschitz, penalties, ratio)
    found = score(training_of(own_training))["0.weight"][0, 0, 0].numpy()
    np.testing.assert_array_equal(np.floor(found), np.floor(entry(path)))
    assert found[DEAD] == 0
    assert found[[0, 1, 2, 3]].min() > 0


def test_features_enter_a_logistic_regression_as_on_the_slow_path(own_training):
    x, y = sample()
    classes = (y > 0).astype(float)
    training = training_of(own_training, lambda y: (y > 0).astype(float), loss=binary_cross_entropy)
    found = lasso(training)["0.weight"][0, 0, 0].numpy()
    least = 2 / np.abs(x.T @ (2 * classes - 1)).max()
    penalties = 1 / (least * np.geomspace(1.2, 20, 6))

    def gradient(w):
        return x.T @ (1 / (1 + np.exp(-x @ w)) - classes)

    path = slow_path(gradient, np.linalg.eigvalsh(x.T @ x).max() / 4, penalties)
    np.testing.assert_array_equal(np.floor(found), np.floor(entry(path)))


def test_the_earlier_the_higher_and_the_larger_within_a_step():
    path = np.array([[0, 0, 0, 1.0], [0, 0, -3.0, 0], [0, 0, 1.0, 1.0], [0, 0, 0, 0]])
    assert entry(path).argsort().tolist() == [3, 0, 2, 1]


def test_failure_to_converge_is_an_error(own_training, monkeypatch):
    monkeypatch.setattr(module, "lasso_path", lambda x, y: lasso_path(x, y, max_iter=1))
    with pytest.raises(RuntimeError, match="path has not converged"):
        lasso(training_of(own_training))


def test_what_has_no_path_is_refused(own_training):
    training = training_of(own_training, lambda y: (y > 0).astype(float), loss=binary_cross_entropy)
    with pytest.raises(ValueError, match="take lasso instead"):
        elastic_net(training)
    net = nn.Sequential(nn.Linear(N, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    x, y = sample()
    with pytest.raises(ValueError, match="has layers"):
        lasso(own_training([net], torch.tensor(x), torch.tensor(y), t0=1))
