"""Variational relevance and variational dropout.

On Bayesian linear regression the diagonal Gaussian that is nearest to the posterior is known: with
the precision A of the posterior its mean is that of the posterior and its variances are 1 / A_jj.
Variational dropout has to find the features that the answers do not depend on, and its KL term is
held against numerical integration.
"""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from parameter_ordering.paper.experiments.models import binary_cross_entropy
from parameter_ordering.paper.orders.posterior import Posterior, nats
from parameter_ordering.paper.orders.variational_dropout import divergence, variational_dropout
from parameter_ordering.paper.orders.variational_relevance import (
    _fitted_prior,
    _fixed_prior,
    variational_relevance,
)

RELEVANT, N, M = 3, 8, 400


def regression():
    """Correlated features, of which the first three count; float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(M, N, generator=generator, dtype=torch.float64)
    x[:, 1] += 0.6 * x[:, 0]
    y = x[:, :RELEVANT] @ torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    return x, y + 0.5 * torch.randn(M, generator=generator, dtype=torch.float64)


def linear(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(N, 1, bias=False)).double()


def test_relevance_is_that_of_the_best_diagonal_gaussian(own_training):
    x, y = regression()
    training = own_training([linear(0), linear(1)], x, y, t0=4000, lr=2e-3)
    found = variational_relevance(training, prior_variance=2.0, noise_variance=0.25)["0.weight"]
    precision = x.T @ x / 0.25 + torch.eye(N) / 2.0
    mean = torch.linalg.solve(precision, x.T @ y / 0.25)
    expected = mean.square() * precision.diagonal()
    assert found.shape == (2, 1, 1, N)
    for each in found[:, 0, 0]:
        torch.testing.assert_close(each.sqrt(), expected.sqrt(), rtol=0.1, atol=0.4)
        assert set(each.argsort()[-RELEVANT:].tolist()) == set(range(RELEVANT))


def random_posterior(runs=2):
    torch.manual_seed(3)
    shapes = {"a": (runs, 1, 2, 3), "b": (runs, 1, 2)}
    draw = {name: (torch.randn(s).double(), torch.randn(s).double()) for name, s in shapes.items()}
    return Posterior({n: m for n, (m, _) in draw.items()}, {n: s for n, (_, s) in draw.items()})


def test_divergences_are_those_of_torch():
    posterior = random_posterior()
    for run in range(2):
        mean, log_sigma = (
            torch.cat([e[run].flatten() for e in part.values()]) for part in posterior
        )
        q = torch.distributions.Normal(mean, log_sigma.exp())
        p = torch.distributions.Normal(torch.zeros(()).double(), math.sqrt(2.0))
        expected = torch.distributions.kl_divergence(q, p).sum()
        torch.testing.assert_close(_fixed_prior(2.0, posterior)[run, 0], expected)
        best = min(
            torch.distributions.kl_divergence(q, torch.distributions.Normal(mu, sigma)).sum().item()
            for mu in mean.mean() + torch.tensor([-0.01, 0.0, 0.01])
            for sigma in q.variance.add((mean - mean.mean()) ** 2).mean().sqrt()
            * torch.tensor([0.99, 1.0, 1.01])
        )
        assert _fitted_prior(posterior)[run, 0].item() == pytest.approx(best)


def test_the_divergence_from_the_log_uniform_prior_is_the_integral():
    """KL = -ln sigma + E ln |w|, up to a constant, for w ~ N(1, alpha); the source is near it."""

    def exact(alpha):
        def density(w):
            return math.exp(-((w - 1) ** 2) / (2 * alpha)) / math.sqrt(2 * math.pi * alpha)

        spread = 12 * math.sqrt(alpha)
        pieces = [(1 - spread, 0), (0, 1 + spread)] if spread > 1 else [(1 - spread, 1 + spread)]
        mean = sum(quad(lambda w: density(w) * math.log(abs(w)), *p, limit=200)[0] for p in pieces)
        return mean - math.log(alpha) / 2

    def approximate(alpha):
        sigma = torch.full((1, 1, 1), math.log(alpha) / 2, dtype=torch.float64)
        return divergence(Posterior({"w": torch.ones_like(sigma)}, {"w": sigma})).item()

    alphas = np.geomspace(0.05, 50, 7)
    differences = [approximate(a) - exact(a) for a in alphas]
    assert np.ptp(differences) < 0.04


@pytest.mark.parametrize("hidden", [0, 6])
def test_variational_dropout_finds_the_irrelevant_features(hidden, own_training):
    x, y = regression()

    def build(seed):
        torch.manual_seed(seed)
        if not hidden:
            return linear(seed)
        return nn.Sequential(nn.Linear(N, hidden), nn.ReLU(), nn.Linear(hidden, 1)).double()

    training = own_training([build(0), build(1)], x, y, t0=1000)
    # The noise of the answers by their loss at w_t0: here of a model that is trained.
    training.model = own_training(
        [trained(build, 0, x, y), trained(build, 1, x, y)], x, y, t0=1
    ).model
    scores = variational_dropout(training)
    by_feature = scores["0.weight"].amax(-2)[:, 0]  # of the unit that needs it most
    assert scores.keys() == training.start.keys()
    for each in by_feature:
        assert each[:RELEVANT].min() > 5 * each[RELEVANT:].max()


def trained(build, seed, x, y):
    model = build(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        (model(x)[:, 0] - y).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("score", [variational_relevance, variational_dropout])
def test_a_run_does_not_depend_on_the_others(score, own_training):
    x, y = regression()
    both = score(own_training([linear(0), linear(1)], x, y, t0=20))["0.weight"]
    alone = own_training([linear(1)], x, y, t0=20)
    alone.own_seeds = [1]
    torch.testing.assert_close(both[1:], score(alone)["0.weight"])


@pytest.mark.parametrize("score", [variational_relevance, variational_dropout])
def test_a_bound_that_is_not_finite_is_an_error(score, own_training):
    x, y = regression()
    training = own_training([linear(0), linear(1)], x, y, t0=5)
    training.start["0.weight"][1] = float("inf")
    with pytest.raises(FloatingPointError, match=r"bound of model 1 .* at iteration 1"):
        score(training)


def test_the_loss_in_nats(own_training):
    x, y = regression()
    training = own_training([linear(0)], x, y, t0=1)
    residual = (training.model(x[None, None])[..., 0] - y).square().mean(-1)
    torch.testing.assert_close(nats(training), 0.5 / residual.detach())
    assert nats(training, 0.25) == 2.0
    classes = own_training([linear(0)], x, (y > 0).double(), t0=1, loss=binary_cross_entropy)
    assert nats(classes) == 1.0
