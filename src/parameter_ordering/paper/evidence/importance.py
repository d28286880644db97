r"""Which inputs a quantity depends on, from points that are there.

:math:`S_i = \mathrm{Var}(E[y \mid x_i]) / \mathrm{Var}(y)`, the first-order Sobol index, is the
share of the variance that input i explains by itself. It is estimated by Pearson's correlation
ratio: the variance of the means of y in ``BINS`` bins of :math:`x_i`, or in its categories, as a
share of that of y. For independent points and m bins its bias is :math:`(m - 1) / (n - 1)`. In a
scrambled Sobol sequence each bin holds the same values of the other inputs, so that these average
out, and next to no bias is left but for what is noise in y. What chance gives is found by shuffling
y.

Source: Plischke, Borgonovo, Smith, Global sensitivity measures from given data, European Journal of
Operational Research 226(3), 2013.
"""

import numpy as np
import pandas as pd

from parameter_ordering.paper.evidence.statistics import jackknife

BINS = 8


def first_order(x: np.ndarray, y: np.ndarray) -> float:
    """The index of one input.

    Args:
        x: (n,), numbers: bins of as many points each, or categories where there are few values.
        y: (n,).

    >>> x = np.linspace(0, 1, 64)
    >>> bool(first_order(x, np.sin(x)) > 0.95)
    True
    """
    return _correlation_ratio(_bins(x), y)


def importance(inputs: pd.DataFrame, y: np.ndarray, draws: int = 1000) -> pd.DataFrame:
    """The index of every input, with its error and what chance alone gives.

    Args:
        inputs: one column an input, categories as strings.
        y: (n,), the quantity.
        draws: how often y is shuffled for what chance gives.

    Returns:
        By input, the largest first: ``share``, the index; ``error``, by jackknife, as of
        independent points, so rather too large; ``chance``, the share that this input reaches by
        chance in one draw of 20, Bonferroni's for all inputs together. What is below it cannot be
        told from nothing with so many points.
    """
    y, rng = np.asarray(y, float), np.random.default_rng(0)
    shuffled = [rng.permutation(y) for _ in range(draws)]
    rows = {}
    for name in inputs:
        bins = _bins(_numbers(inputs[name]))
        by_chance = [_correlation_ratio(bins, each) for each in shuffled]
        rows[name] = {
            "share": _correlation_ratio(bins, y),
            "error": jackknife(_correlation_ratio, bins, y).standard_error,
            "chance": float(np.quantile(by_chance, 1 - 0.05 / inputs.shape[1])),
        }
    return pd.DataFrame(rows).T.sort_values("share", ascending=False)


def _bins(x: np.ndarray) -> np.ndarray:
    values, codes, counts = np.unique(x, return_inverse=True, return_counts=True)
    if len(values) <= BINS:
        return codes
    return ((np.cumsum(counts) - counts) * BINS // len(x))[codes]  # ties stay together


def _correlation_ratio(bins: np.ndarray, y: np.ndarray) -> float:
    bins, y = bins.astype(int), y - y.mean()
    sizes = np.bincount(bins)
    sums = np.bincount(bins, y)[sizes > 0]
    return float((sums**2 / sizes[sizes > 0]).sum() / (y**2).sum())


def _numbers(column: pd.Series) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(float)
    return pd.factorize(column.astype(str), sort=True)[0].astype(float)
