r"""How the loss grows with the number of frozen parameters (figures 1, 3, 5, 7).

A loss is a DataArray with the dimensions ``run`` and ``k``, k from 0 to p in ascending steps, and
any others. Growth is the difference from k = 0 of the same run, in units of the loss: so a run is
compared with itself, and two orders in pairs. Interior k are those strictly between 0 and p, where
orders differ.
"""

import numpy as np
import xarray as xr

from parameter_ordering.paper.evidence.statistics import (
    Estimate,
    Ratio,
    is_well_above_zero,
    jackknife,
)


def mean_growth(loss: xr.DataArray) -> xr.DataArray:
    """Growth averaged over interior k, in units of the loss.

    >>> k = xr.DataArray([0, 1, 2, 3], dims="k")
    >>> float(mean_growth(xr.DataArray([1.0, 2.0, 4.0, 9.0], {"k": k})))
    2.0
    """
    _check(loss)
    return loss.isel(k=slice(1, -1)).mean("k") - loss.isel(k=0, drop=True)


def growth_ratio(data: xr.Dataset, order: str, versus: str) -> Ratio | None:
    """Mean growth of the test loss in one order as a ratio to that in another, paired by run.

    None where the growth in the other is not well above 0: there is no ratio then.
    """
    return _ratio(mean_growth(data.loss.sel(split="test")), order, versus)


def growth_ratios(
    data: xr.Dataset, order: str, versus: str, split: str = "test"
) -> dict[int, Ratio | None]:
    """The same at each interior k by itself, on either part of the data."""
    loss = data.loss.sel(split=split)
    _check(loss)
    growth = loss.isel(k=slice(1, -1)) - loss.isel(k=0, drop=True)
    return {int(k): _ratio(growth.sel(k=k), order, versus) for k in growth.k}


def _ratio(growth: xr.DataArray, order: str, versus: str) -> Ratio | None:
    ours, theirs = growth.sel(order=order), growth.sel(order=versus)
    return Ratio(ours, theirs) if is_well_above_zero(theirs) else None


def spread_ratio(a: xr.DataArray, b: xr.DataArray) -> Estimate:
    r"""Ratio of the variances over runs of two orders' losses, averaged over interior k.

    :math:`\exp \frac{1}{K} \sum_k \ln (\mathrm{Var}\,a(k) / \mathrm{Var}\,b(k))`: a geometric
    mean, in which every k counts alike though the loss may grow a hundredfold. The error of the
    logarithm is by jackknife over runs, which keeps the pairs and, unlike the F test, needs no
    normal losses (Miller, Jackknifing variances, 1968). In simulations of 25 runs the 95 % interval
    misses the truth in 4 to 6 % of the cases, in 9 % for lognormal losses.

    Raises:
        ValueError: at some interior k a loss is the same in all runs.
    """
    samples = [_by_run(each)[:, 1:-1] for each in (a, b)]
    if any((each.std(0) == 0).any() for each in samples):
        raise ValueError("a loss is the same in all runs: there is no spread to compare")

    def log_ratio(a: np.ndarray, b: np.ndarray) -> float:
        return float((np.log(a.var(0)) - np.log(b.var(0))).mean())

    return jackknife(log_ratio, *samples, logarithmic=True)


def freezable(loss: xr.DataArray, tolerance: float, versus: xr.DataArray | None = None) -> Estimate:
    r"""Share k / p of parameters that can be frozen before the mean loss grows by ``tolerance``.

    The mean over runs is divided by that at k = 0 and followed, linearly between grid points, to
    where it first passes 1 + tolerance; 1 if it never does. Error by jackknife over runs.

    Args:
        loss: of one order.
        tolerance: relative growth, 0.05 for 5 %.
        versus: loss of another order, paired by run, whose share is subtracted.

    >>> loss = xr.DataArray([[1.0, 1.0, 1.2], [1.0, 1.0, 1.2]], {"k": [0, 50, 100]}, ["run", "k"])
    >>> freezable(loss, 0.1).value
    0.75
    """
    if tolerance <= 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    share = loss["k"].values / loss["k"].values[-1]

    def crossing(loss: np.ndarray) -> float:
        mean = loss.mean(0)
        excess = mean / mean[0] - 1 - tolerance
        above = np.flatnonzero(excess > 0)
        if not len(above):
            return 1.0
        last, first = excess[above[0] - 1], excess[above[0]]
        step = share[above[0]] - share[above[0] - 1]
        return float(share[above[0] - 1] + step * last / (last - first))

    if versus is None:
        return jackknife(crossing, _by_run(loss))
    return jackknife(lambda a, b: crossing(a) - crossing(b), _by_run(loss), _by_run(versus))


def _by_run(loss: xr.DataArray) -> np.ndarray:
    _check(loss)
    return loss.transpose("run", "k").values.astype(float)


def _check(loss: xr.DataArray) -> None:
    k = loss["k"].values
    if len(k) < 3 or k[0] != 0 or (np.diff(k) <= 0).any():
        raise ValueError(f"k must ascend from 0 to p with values between them, got {k}")
