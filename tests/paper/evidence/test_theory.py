"""Closed forms for linear regression, against quadrature, enumeration and least squares, all exact.

Where only sampling is left, the tolerance is five standard errors that the theory itself states.
"""

import itertools

import numpy as np
import pytest
import torch

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.paper.evidence import theory

ESTIMATORS = [theory.first_sample, theory.all_samples, theory.uncentred]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def gradients_by_quadrature(d, sigma):
    """All gradients (nodes, n) at the nodes of a Gauss-Hermite rule, and the nodes' weights.

    With 12 nodes an axis polynomials up to degree 23 are integrated exactly; a fourth moment of the
    gradient has degree 8.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / weights.sum()
    axes = len(d) + 1
    z = np.array(list(itertools.product(nodes, repeat=axes)))
    weight = np.array(list(itertools.product(weights, repeat=axes))).prod(1)
    x, noise = z[:, :-1], sigma * z[:, -1]
    return 2 * (x @ d - noise)[:, None] * x, weight


@pytest.mark.parametrize("sigma", [0.0, 1.5])
@pytest.mark.parametrize("d", [[0.7, -1.2], [0.0, 2.0], [1.0, 0.0, -0.3]])
def test_covariance_and_cumulants_by_quadrature(d, sigma):
    d = np.array(d)
    g, weight = gradients_by_quadrature(d, sigma)
    mean = weight @ g
    centred = g - mean
    C = (centred * weight[:, None]).T @ centred
    third, fourth = ((centred**2 * weight[:, None]).T @ centred**m for m in (1, 2))
    fourth -= np.outer(C.diagonal(), C.diagonal()) + 2 * C**2
    cumulants = theory.gradient_cumulants(d, sigma)
    np.testing.assert_allclose(theory.gradient_covariance(d, sigma), C, atol=1e-10)
    np.testing.assert_allclose(cumulants.mean, mean, atol=1e-10)
    np.testing.assert_allclose(cumulants.covariance, C, atol=1e-10)
    np.testing.assert_allclose(cumulants.third, third, atol=1e-9)
    np.testing.assert_allclose(cumulants.fourth, fourth, atol=1e-8)
    np.testing.assert_allclose(C.diagonal(), 4 * (d @ d + d**2 + sigma**2), atol=1e-10)


@pytest.mark.parametrize("S", [2, 3, 5])
def test_estimators_by_enumeration(S):
    """Every minibatch of S objects whose gradient (2,) has three possible values."""
    values, chances = np.array([[-1.0, 2.0], [0.5, 0.0], [3.0, 1.0]]), np.array([0.5, 0.3, 0.2])
    mean = chances @ values
    centred = values - mean
    C = (centred * chances[:, None]).T @ centred
    third, fourth = ((centred**2 * chances[:, None]).T @ centred**m for m in (1, 2))
    fourth -= np.outer(C.diagonal(), C.diagonal()) + 2 * C**2
    cumulants = theory.Cumulants(mean, C, third, fourth)
    batches = np.array(list(itertools.product(range(3), repeat=S)))
    g, weight = values[batches], chances[batches].prod(1)
    g_S = g.mean(1)
    estimates = {
        theory.first_sample: (g[:, 0] - g_S) ** 2,
        theory.all_samples: ((g - g_S[:, None]) ** 2).mean(1),
        theory.uncentred: g_S**2,
    }
    for estimator, each in estimates.items():
        expected = estimator(cumulants, S)
        error = each - weight @ each
        np.testing.assert_allclose(expected.mean, weight @ each, rtol=1e-12)
        np.testing.assert_allclose(expected.covariance, (error * weight[:, None]).T @ error)


def test_all_samples_have_less_variance_by_S_minus_1_for_a_gaussian_gradient():
    gaussian = theory.Cumulants(np.ones(1), np.array([[2.0]]), np.zeros((1, 1)), np.zeros((1, 1)))
    for S in (2, 5, 32):
        first, every = theory.first_sample(gaussian, S), theory.all_samples(gaussian, S)
        assert first.mean == every.mean == pytest.approx((1 - 1 / S) * 2.0)
        assert first.covariance / every.covariance == pytest.approx(S - 1)


@pytest.mark.parametrize(
    ("samples", "estimator"), [("first", theory.first_sample), ("all", theory.all_samples)]
)
def test_the_library_estimates_the_closed_form(samples, estimator):
    """diag(C) after T minibatches lies within five standard errors of its mean, and not of C's."""
    n, S, T, sigma = 4, 4, 3000, 1.0
    torch.manual_seed(0)
    model = torch.nn.Linear(n, 1, bias=False).double()
    w = torch.randn(n, dtype=torch.float64)
    d = (model.weight.detach()[0] - w).numpy()
    C = GradientCovariance(model, samples=samples)
    for _ in range(T):
        x = torch.randn(S, n, dtype=torch.float64)
        y = x @ w + sigma * torch.randn(S, dtype=torch.float64)
        C.update(lambda output, y: (output[:, 0] - y).square().mean(), x, y)
    cumulants = theory.gradient_cumulants(d, sigma)
    expected = estimator(cumulants, S)
    error = np.sqrt(expected.covariance.diagonal() / T)
    estimate = C.diagonal()["weight"][0].numpy()
    assert (np.abs(estimate - expected.mean) < 5 * error).all()
    if samples == "all":
        assert (np.abs(estimate - cumulants.covariance.diagonal()) > 5 * error).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_runs_correlate_by_the_reliability(estimator, rng):
    """After as many iterations as should give 1/2; 400 runs, by covariance between over within."""
    n, S, sigma, runs = 10, 8, 0.5, 400
    d = rng.normal(size=n)
    expected = estimator(theory.gradient_cumulants(d, sigma), S)
    T = max(1, round(theory.iterations_to_see(expected)))
    averages = np.zeros((runs, n))
    for _ in range(T):
        x = rng.normal(size=(runs, S, n))
        g = 2 * (x @ d - sigma * rng.normal(size=(runs, S)))[..., None] * x
        g_S = g.mean(1)
        averages += {
            theory.first_sample: (g[:, 0] - g_S) ** 2,
            theory.all_samples: ((g - g_S[:, None]) ** 2).mean(1),
            theory.uncentred: g_S**2,
        }[estimator]
    products = np.cov(averages, ddof=0)
    within = products.trace() / runs
    between = (products.sum() - products.trace()) / (runs * (runs - 1))
    reliability = theory.reliability(expected, T)
    assert 0.4 < reliability < 0.8
    assert between / within == pytest.approx(reliability, abs=0.02)


def test_an_error_that_all_coordinates_share_changes_no_order():
    mean, own, shared = np.array([1.0, 2.0, 4.0]), np.eye(3), np.full((3, 3), 5.0)
    apart, together = (theory.Estimator(mean, each) for each in (own, own + shared))
    assert theory.reliability(together, 7) == pytest.approx(theory.reliability(apart, 7))


@pytest.mark.parametrize("target", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_iterations_to_see_inverts_reliability(estimator, target, rng):
    each = estimator(theory.gradient_cumulants(rng.normal(size=50), 1.0), 16)
    T = theory.iterations_to_see(each, target)
    assert theory.reliability(each, T) == pytest.approx(target)


def test_iterations_to_see_the_signal_are_n_squared_until_the_minibatch_averages():
    """The rules of thumb in the docstring, for coordinates that are exactly normal quantiles."""
    n, S = 2_000, 50
    d = np.sqrt(2) * torch.erfinv(torch.linspace(-1, 1, n + 2, dtype=torch.float64)[1:-1]).numpy()
    c = theory.gradient_cumulants(d, sigma=0.0)
    first, every, moment = (theory.iterations_to_see(f(c, S)) for f in ESTIMATORS)
    assert first == pytest.approx(3 * n**2, rel=0.05)
    assert every == pytest.approx(3 * n**2 / S, rel=0.05)
    assert moment == pytest.approx((n / S) ** 2 + 2 * n / S + 2 * n**2 / S**3, rel=0.05)


def test_growth_is_what_least_squares_loses(rng):
    """On a design with X^T X = m I the growth of the training loss is exact, not in the mean."""
    m, n = 64, 6
    X = np.linalg.qr(rng.normal(size=(m, n)))[0] * np.sqrt(m)
    y = X @ rng.normal(size=n) + rng.normal(size=m)
    w = rng.normal(size=n)
    order = rng.permutation(n)

    def loss(frozen):
        free = np.setdiff1d(np.arange(n), frozen)
        v = w.copy()
        v[free] = np.linalg.lstsq(X[:, free], y - X[:, frozen] @ w[frozen], rcond=None)[0]
        return np.mean((y - X @ v) ** 2)

    losses = np.array([loss(order[:k]) for k in range(n + 1)])
    d = w - np.linalg.lstsq(X, y, rcond=None)[0]
    np.testing.assert_allclose(theory.growth(d, order), losses - losses[0], atol=1e-12)


def test_no_order_grows_slower_than_the_oracle(rng):
    d = rng.normal(size=7)
    oracle = theory.growth(d, np.argsort(np.abs(d)))
    every = [theory.growth(d, np.array(order)) for order in itertools.permutations(range(7))]
    assert (np.min(every, axis=0) >= oracle - 1e-12).all()
    np.testing.assert_allclose(np.mean(every, axis=0), (d @ d) * np.arange(8) / 7)


def test_the_oracle_grows_by_0_363_of_random_for_normal_weights():
    d = torch.erfinv(torch.linspace(-1, 1, 10_001, dtype=torch.float64)[1:-1]).numpy()
    oracle = theory.growth(d, np.argsort(np.abs(d))).mean()
    assert oracle / (d @ d / 2) == pytest.approx(1 - 2 / np.pi, abs=2e-3)
