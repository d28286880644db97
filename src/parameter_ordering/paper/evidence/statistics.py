"""Estimates over independent runs, with their errors and intervals.

All inference is by Student's t with one degree of freedom less than there are runs: exact for
normal differences between paired runs, and approximate for the jackknife.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, log
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit


class Inference(Protocol):
    """What a verdict needs: :class:`Estimate` and :class:`Ratio` have it.

    Attributes:
        value: the estimate.
        standard_error: of the value; for a quantity estimated by its logarithm, of that.
        df: degrees of freedom.
    """

    @property
    def value(self) -> float: ...

    @property
    def standard_error(self) -> float: ...

    @property
    def df(self) -> int: ...

    def t(self, threshold: float) -> float:
        """Student's statistic of the value against a threshold, positive above it."""

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """All thresholds that a two-sided test at 1 - confidence does not reject."""


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error; with ``logarithmic`` the error is of the value's logarithm.

    >>> Estimate(1.0, 0.1, df=24).interval()
    (0.79..., 1.20...)
    """

    value: float
    standard_error: float
    df: int
    logarithmic: bool = False

    def t(self, threshold: float) -> float:
        if self.logarithmic:
            return _t(log(self.value) - log(threshold), self.standard_error)
        return _t(self.value - threshold, self.standard_error)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        half = quantile(confidence, self.df) * self.standard_error
        if self.logarithmic:
            return self.value * exp(-half), self.value * exp(half)
        return self.value - half, self.value + half


class Ratio:
    """Ratio of two means over paired runs.

    A ratio below r is the same as a mean of a - r b below 0, which is tested by a paired t; the
    interval, Fieller's, holds all r that are not rejected.

    Args:
        a: the numerator of each run.
        b: the denominator of each run.

    Raises:
        ValueError: the mean of b is not well above 0, see :func:`is_well_above_zero`.

    >>> ratio = Ratio([1.0, 1.25, 1.25, 1.0], [2.0, 2.0, 2.5, 2.5])
    >>> ratio.value, ratio.interval()
    (0.5, (0.37..., 0.67...))
    """

    def __init__(self, a: ArrayLike, b: ArrayLike):
        self.a, self.b = _runs(a, b)
        if not is_well_above_zero(self.b):
            raise ValueError("the denominator is not well above 0: compare differences instead")
        self.value = float(self.a.mean() / self.b.mean())
        self.standard_error = _error(self.a - self.value * self.b) / float(self.b.mean())
        self.df = len(self.a) - 1

    def t(self, threshold: float) -> float:
        difference = self.a - threshold * self.b
        return _t(float(difference.mean()), _error(difference))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        q2 = quantile(confidence, self.df) ** 2
        (a, b), covariance = (self.a.mean(), self.b.mean()), np.cov(self.a, self.b) / len(self.a)
        # t(r)^2 = q^2 is x r^2 - 2 y r + z = 0.
        x, y, z = np.array([b * b, a * b, a * a]) - q2 * covariance[[1, 0, 0], [1, 1, 0]]
        if x <= 0:
            return -inf, inf
        root = np.sqrt(max(y * y - x * z, 0.0))
        return float((y - root) / x), float((y + root) / x)


def is_well_above_zero(values: ArrayLike) -> bool:
    r"""Whether a mean over runs may stand under a fraction.

    Finney's rule: Fieller's :math:`g = q^2 \mathrm{SE}^2 / \mathrm{mean}^2 \le 0.1` with q of the
    95 % interval, so that the mean is at least 3.2 half widths of its own interval above 0.
    """
    (values,) = _runs(values)
    half = quantile(0.95, len(values) - 1) * _error(values)
    return bool(values.mean() > 0 and half**2 <= 0.1 * values.mean() ** 2)


def mean_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Mean of a - b over paired runs.

    >>> mean_difference([1.0, 2.0, 4.0], [0.0, 1.0, 2.0]).value
    1.333...
    """
    a, b = _runs(a, b)
    return Estimate(float((a - b).mean()), _error(a - b), len(a) - 1)


def jackknife(
    statistic: Callable[..., float], *samples: ArrayLike, logarithmic: bool = False
) -> Estimate:
    r"""A statistic of all runs, its error from leaving out one run at a time.

    :math:`\mathrm{SE}^2 = \frac{R - 1}{R} \sum_i (\theta_{-i} - \bar\theta)^2`, Tukey's.

    Args:
        statistic: of the samples; where ``logarithmic``, of a quantity's logarithm.
        samples: arrays whose first axis is the run.

    >>> jackknife(np.median, [1.0, 2.0, 4.0]).standard_error
    0.88...
    """
    arrays = _runs(*samples)
    whole = float(statistic(*arrays))
    runs = range(len(arrays[0]))
    parts = [statistic(*(np.delete(each, i, 0) for each in arrays)) for i in runs]
    return from_parts(whole, parts, logarithmic)


def from_parts(whole: float, parts: ArrayLike, logarithmic: bool = False) -> Estimate:
    """The jackknife of a statistic whose values without each of the runs are known."""
    parts = np.asarray(parts, float)
    runs = len(parts)
    error = float(np.sqrt((runs - 1) * parts.var()))
    return Estimate(exp(whole) if logarithmic else whole, error, runs - 1, logarithmic)


def quantile(confidence: float, df: int) -> float:
    """How many standard errors an interval reaches to either side.

    >>> quantile(0.95, df=24)
    2.06...
    """
    return float(stdtrit(df, (1 + confidence) / 2))


def _runs(*samples: ArrayLike) -> list[np.ndarray]:
    arrays = [np.asarray(each, float) for each in samples]
    runs = [len(each) for each in arrays]
    if len(set(runs)) > 1:
        raise ValueError(f"paired samples must have the same runs, got {runs} of them")
    if runs[0] < 2:
        raise ValueError("a single run has no spread: take 2 runs or more")
    for each in arrays:
        bad = np.flatnonzero(~np.isfinite(each.reshape(len(each), -1)).all(1))
        if len(bad):
            raise ValueError(f"run {bad[0]} holds values that are NaN or infinite")
    return arrays


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _t(distance: float, error: float) -> float:
    if error > 0:
        return distance / error
    return 0.0 if distance == 0 else inf if distance > 0 else -inf
