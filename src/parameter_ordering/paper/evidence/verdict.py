"""The rule that makes a verdict of an estimate.

A claim says that a quantity lies in a region: below a threshold, above it, or between two.

    It is *supported* if the interval of the quantity lies inside the region, *not supported* if the
    interval lies outside, and *inconclusive* if a boundary of the region lies in the interval. It
    *cannot be judged* where the quantity does not exist: no more runs would change that.

The level of the interval is 1 - alpha for a claim alone; among many it is the one that Holm's
correction gives. For a region between two thresholds this is the equivalence test by two one-sided
tests (TOST), each at alpha / 2.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr
from statsmodels.stats.power import TTestPower

from parameter_ordering.paper.evidence.statistics import Inference

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
CANNOT = "cannot be judged"


class Evidence(NamedTuple):
    """The smallest alpha at which a claim is decided, and which way."""

    p: float
    inside: bool


def evidence(quantity: Inference, low: float = -inf, high: float = inf) -> Evidence:
    """How far a quantity is from a boundary of the region (low, high), as a p-value.

    ``p`` is the smallest alpha whose 1 - alpha interval holds no boundary: twice the p-value of the
    one-sided test, for a region between two thresholds twice that of the weaker of the two.

    >>> from parameter_ordering.paper.evidence.statistics import Estimate
    >>> evidence(Estimate(0.4, 0.05, df=24), high=0.5)
    Evidence(p=0.05..., inside=True)
    """
    t_low = inf if low == -inf else quantity.t(low)
    t_high = -inf if high == inf else quantity.t(high)
    inside = max(stdtr(quantity.df, [-t_low, t_high]))
    outside = min(stdtr(quantity.df, [t_low, -t_high]))
    return Evidence(min(1.0, 2 * float(min(inside, outside))), bool(inside < outside))


def holm(p: Sequence[float]) -> np.ndarray:
    """P-values adjusted for their number by Holm's step-down.

    Whatever depends on what, the chance that any true hypothesis falls below alpha is at most alpha
    (Holm, A simple sequentially rejective multiple test procedure, 1979).

    >>> holm([0.01, 0.04, 0.03])
    array([0.03, 0.06, 0.06])
    """
    # statsmodels has it too, and collects garbage in each call: a second in a process with torch.
    values = np.asarray(p, dtype=float)
    order = values.argsort()
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1)
    return adjusted


def verdict(p: float, inside: bool, alpha: float = 0.05) -> str:
    """The rule of this module for what :func:`evidence` gives, its p-value adjusted or not.

    >>> verdict(0.01, inside=True), verdict(0.01, inside=False), verdict(0.2, inside=True)
    ('supported', 'not supported', 'inconclusive')
    """
    if p > alpha:
        return INCONCLUSIVE
    return SUPPORTED if inside else NOT_SUPPORTED


def smallest_effect(
    standard_error: float, df: int, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Distance from a threshold that a test at ``alpha`` sees with probability ``power``.

    In the unit of the standard error. In 25 runs, in standard deviations of a paired difference:

    >>> smallest_effect(standard_error=1 / 25**0.5, df=24)
    0.58...
    """
    # One side of the two-sided test: that the other rejects, an effect away, does not count.
    solved = TTestPower().solve_power(
        nobs=df + 1, alpha=alpha / 2, power=power, alternative="larger"
    )
    return float(standard_error * solved * (df + 1) ** 0.5)
