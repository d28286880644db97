r"""What (2.6) estimates on a linear regression, in closed form.

Objects :math:`x \sim N(0, I_n)`, answers :math:`y \sim N(w_*^T x, \sigma^2)`, loss
:math:`(y - w^T x)^2`, and :math:`d = w - w_*`. The gradient at one object,
:math:`g = 2 (d^T x - \varepsilon) x`, has

.. math:: E\,g = 2 d, \qquad C = 4 \bigl((|d|^2 + \sigma^2) I + d d^T\bigr).

Freezing the coordinates :math:`F` for good costs :math:`\sum_F d_j^2`: this is the signal that an
order should see. In :math:`C_{jj} = 4 (|d|^2 + \sigma^2) + 4 d_j^2` it is one part in n, drowned in
what all coordinates share. In the uncentred moment of the minibatch gradient,
:math:`E\,g_{S,j}^2 = C_{jj} / S + 4 d_j^2`, averaging over S objects has removed most of that.

Everything is for a w that stands still. Arrays are of float64, with one value for each coordinate
(n,) or for each pair of them (n, n).
"""

from typing import NamedTuple

import numpy as np


class Cumulants(NamedTuple):
    r"""Joint cumulants of two components j, k of the gradient at one object.

    ``mean`` (n,); ``covariance``, ``third`` :math:`\kappa_{jjk}` and ``fourth``
    :math:`\kappa_{jjkk}` (n, n). For a Gaussian gradient the last two are 0.
    """

    mean: np.ndarray
    covariance: np.ndarray
    third: np.ndarray
    fourth: np.ndarray


class Estimator(NamedTuple):
    """What an estimate from one minibatch has for mean (n,) and covariance (n, n)."""

    mean: np.ndarray
    covariance: np.ndarray


def gradient_covariance(d: np.ndarray, sigma: float) -> np.ndarray:
    r"""The matrix :math:`C = 4 ((|d|^2 + \sigma^2) I + d d^T)`, shape (n, n).

    By Isserlis' theorem :math:`E (d^T x)^2 x x^T = |d|^2 I + 2 d d^T`; the noise adds
    :math:`\sigma^2 I`, the square of the mean takes :math:`d d^T` away.

    >>> gradient_covariance(np.array([1.0, 0.0]), sigma=1.0)
    array([[12.,  0.],
           [ 0.,  8.]])
    """
    return 4 * ((d @ d + sigma**2) * np.eye(len(d)) + np.outer(d, d))


def gradient_cumulants(d: np.ndarray, sigma: float) -> Cumulants:
    r"""Cumulants of the gradient at one object, exactly.

    :math:`g_j = z^T A_j z` with the standard normal :math:`z = (x, \varepsilon / \sigma)`,
    :math:`A_j = e_j v^T + v e_j^T` and :math:`v = (d, -\sigma)`. Joint cumulants of m quadratic
    forms are :math:`2^{m-1}` times the sum of :math:`\mathrm{tr}\, A_{j_1} \cdots A_{j_m}` over the
    (m - 1)! orders in a circle. With :math:`q = |d|^2 + \sigma^2`

    .. math::
        \kappa_{jjk} &= 16 (d_j^2 + q) d_k + 32\, q\, d_j \delta_{jk}, \\
        \kappa_{jjkk} &= 96\, d_j^2 d_k^2 + 96\, q (d_j^2 + d_k^2) + 32\, q^2
        + (384\, q\, d_j^2 + 64\, q^2) \delta_{jk}.
    """
    q, square, same = d @ d + sigma**2, d**2, np.eye(len(d))
    third = 16 * np.outer(square + q, d) + 32 * q * d * same
    fourth = 96 * (np.outer(square, square) + q * np.add.outer(square, square)) + 32 * q**2
    fourth += (384 * q * square + 64 * q**2) * same
    return Cumulants(2 * d, gradient_covariance(d, sigma), third, fourth)


def first_sample(c: Cumulants, S: int) -> Estimator:
    r"""The paper's estimate :math:`(g_1 - g_S)^2`, (2.6).

    Mean :math:`(1 - 1/S)\, C_{jj}`; covariance
    :math:`2 (1 - 1/S)^2 C_{jk}^2 + \bigl((1 - 1/S)^4 + (S - 1) / S^4\bigr) \kappa_{jjkk}`.
    """
    share = 1 - 1 / S
    heavy = (share**4 + (S - 1) / S**4) * c.fourth
    return Estimator(share * c.covariance.diagonal(), 2 * (share * c.covariance) ** 2 + heavy)


def all_samples(c: Cumulants, S: int) -> Estimator:
    r"""The estimate :math:`\frac{1}{S} \sum_i (g_i - g_S)^2` from all objects of the minibatch.

    Mean :math:`(1 - 1/S)\, C_{jj}`, as :func:`first_sample`; covariance
    :math:`(1 - 1/S)^2 \bigl(2 C_{jk}^2 / (S - 1) + \kappa_{jjkk} / S\bigr)`, for a Gaussian
    gradient S - 1 times less.
    """
    share = 1 - 1 / S
    noise = 2 * c.covariance**2 / (S - 1) + c.fourth / S
    return Estimator(share * c.covariance.diagonal(), share**2 * noise)


def uncentred(c: Cumulants, S: int) -> Estimator:
    r"""The squared minibatch gradient :math:`g_S^2`, which Adam averages in :math:`v_t`.

    Mean :math:`V_{jj} + \mu_j^2` with :math:`V = C / S` and :math:`\mu = E g`; covariance
    :math:`2 V_{jk}^2 + 4 \mu_j \mu_k V_{jk} + 2 (\mu_k \kappa_{jjk} + \mu_j \kappa_{kkj}) / S^2
    + \kappa_{jjkk} / S^3`. The square of a gradient averaged over T iterations is the same with S T
    objects.
    """
    V, third = c.covariance / S, c.mean * c.third / S**2
    noise = 2 * V**2 + 4 * np.outer(c.mean, c.mean) * V + 2 * (third + third.T) + c.fourth / S**3
    return Estimator(V.diagonal() + c.mean**2, noise)


def reliability(estimator: Estimator, iterations: float) -> float:
    r"""How alike two runs see the coordinates, after averaging over ``iterations``.

    The squared correlation, over coordinates, of the average with its mean, and so the correlation
    of two independent averages: signal / (signal + noise / T). The signal is the variance of the
    mean over coordinates; the noise is the variance less the covariance of two coordinates, since
    an error that all share changes no order. All three means are affine in :math:`d_j^2`, so this
    also is the squared correlation with :math:`d_j^2`.

    >>> c = gradient_cumulants(np.linspace(0, 1, 200), sigma=1.0)
    >>> [round(reliability(f(c, S=32), 2000), 2) for f in (first_sample, all_samples, uncentred)]
    [0.01, 0.17, 0.94]
    """
    signal, noise = _signal_and_noise(estimator)
    return float(signal / (signal + noise / iterations))


def iterations_to_see(estimator: Estimator, target: float = 0.5) -> float:
    r"""Iterations after which :func:`reliability` is ``target``: noise / signal times odds of it.

    For n coordinates :math:`d_j \sim N(0, s^2)` with :math:`\sigma^2 \ll |d|^2` and target 1/2
    these are about :math:`3 n^2` for the first sample, :math:`3 n^2 / S` for all samples, and
    :math:`(n/S)^2 + 2 n/S + 2 n^2/S^3` for the uncentred moment.
    """
    signal, noise = _signal_and_noise(estimator)
    return float(noise / signal * target / (1 - target))


def _signal_and_noise(estimator: Estimator) -> tuple[float, float]:
    """Variance over coordinates of what is estimated, and of the error of one minibatch."""
    error = estimator.covariance
    return estimator.mean.var(), error.diagonal().mean() - error.mean()


def growth(d: np.ndarray, order: np.ndarray) -> np.ndarray:
    r"""Growth of the expected loss for k = 0 ... n frozen coordinates, all others at their optimum.

    :math:`\sum_{j \in F} d_j^2` for the k first of ``order``, a permutation of 0 ... n - 1. No
    order grows slower than that by :math:`|d_j|`, the oracle; a random one grows by
    :math:`k |d|^2 / n` in the mean. Averaged over k, the oracle's growth is 1 - 2 / pi = 0.363 of
    a random order's for normal :math:`d_j` (the Gini index of a chi-squared variable is 2 / pi).

    >>> growth(np.array([1.0, 3.0, 2.0]), order=np.array([0, 2, 1]))
    array([ 0.,  1.,  5., 14.])
    """
    return np.concatenate([[0.0], np.cumsum(d[order] ** 2)])
