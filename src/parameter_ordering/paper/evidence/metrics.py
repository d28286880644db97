"""The quantities that claims are about, read off the results of an experiment.

Results are what :meth:`~.experiment.Experiment.run` gives. A metric takes them, for one part of the
data where it looks at the loss, and the claim; ``METRICS`` says of each which fields of the claim
it reads and which test comes with it.
"""

import json
from collections.abc import Callable, Set
from math import inf
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from parameter_ordering.paper.evidence import stability as orders
from parameter_ordering.paper.evidence.claims import Claim, Region
from parameter_ordering.paper.evidence.growth import freezable, mean_growth, spread_ratio
from parameter_ordering.paper.evidence.statistics import (
    Estimate,
    Inference,
    Ratio,
    is_well_above_zero,
    mean_difference,
)


class Measured(NamedTuple):
    """A quantity, its unit, and the region of the claim in that unit."""

    quantity: Inference
    unit: str
    region: Region


def growth(data: xr.Dataset, claim: Claim, negligible: float) -> Measured:
    """Ratio of the growth of two orders, averaged over interior k.

    Where the growth of the order compared with is not well above 0 there is no ratio: by
    :func:`is_well_above_zero`, or because it is below five times ``negligible``, so that a fifth of
    it would count as none. Then the paired difference of growth is taken, in units of the loss at
    k = 0: less or greater is what exceeds ``negligible``, within what does not.
    """
    loss = data.loss.sel(order=[claim.order, claim.versus])
    ours, theirs = mean_growth(loss).transpose("order", "run").values
    at_zero = float(loss.isel(k=0).mean())
    if is_well_above_zero(theirs) and theirs.mean() >= 5 * negligible * at_zero:
        return Measured(Ratio(ours, theirs), "ratio of growth", claim.region)
    regions = {
        "less": Region(-inf, -negligible),
        "within": Region(-negligible, negligible),
        "greater": Region(negligible, inf),
    }
    difference = mean_difference(ours / at_zero, theirs / at_zero)
    return Measured(difference, "difference of growth / loss at k = 0", regions[claim.direction])


def advantage_lost_with_width(data: xr.Dataset, claim: Claim, negligible: float) -> Measured:
    """Ratio of growth in the widest net over that in the narrowest.

    The results have a dimension ``width``. Above 1 if the order compared with catches up as the net
    becomes wider. Where either ratio is not defined, the difference of both differences, as in
    :func:`growth`.
    """
    narrow, wide = (growth(data.isel(width=end), claim, negligible) for end in (0, -1))
    if narrow.unit == wide.unit == "ratio of growth":
        a, b = narrow.quantity, wide.quantity
        error = np.hypot(a.standard_error / a.value, b.standard_error / b.value)
        value, unit = b.value / a.value, "ratio of ratios of growth"
        return Measured(Estimate(value, float(error), a.df, True), unit, claim.region)
    differences = []
    for end in (0, -1):
        loss = data.isel(width=end).loss.sel(order=[claim.order, claim.versus])
        relative = mean_growth(loss).transpose("order", "run").values / float(loss.isel(k=0).mean())
        differences.append(mean_difference(*relative))
    a, b = differences
    error = float(np.hypot(a.standard_error, b.standard_error))
    unit = "difference of differences of growth / loss at k = 0"
    return Measured(Estimate(b.value - a.value, error, a.df), unit, Region(negligible, inf))


def spread(data: xr.Dataset, claim: Claim, _: float) -> Measured:
    """Ratio of the variances over runs of the loss of two orders."""
    ours, theirs = (data.loss.sel(order=order) for order in (claim.order, claim.versus))
    return Measured(spread_ratio(ours, theirs), "ratio of variances over runs", claim.region)


def freezable_share(data: xr.Dataset, claim: Claim, _: float) -> Measured:
    """Share of parameters frozen before the loss has grown by ``tolerance``, or what it is more."""
    versus = None if claim.versus is None else data.loss.sel(order=claim.versus)
    estimate = freezable(data.loss.sel(order=claim.order), claim.tolerance, versus)
    unit = "share of p" if versus is None else "difference of shares of p"
    return Measured(estimate, unit, claim.region)


def stability(data: xr.Dataset, claim: Claim, _: float) -> Measured:
    """Rank correlation between runs on untied parameters, or what it is more.

    Hidden units are matched by their weights where each run started from weights of its own.
    """
    alive, match = data.variance.values > 0, None
    units = orders.hidden_units(_sizes(data))
    if units is not None and not _settings(data)["shared_weights"]:
        match = orders.match_by_weights(data.w.values, units)
    ours = data.ranks.sel(order=claim.order).values
    if claim.versus is None:
        matrix = orders.rank_correlations(ours, alive, match)
        return Measured(orders.stability(matrix), "rank correlation", claim.region)
    if claim.versus in data.order:
        theirs = data.ranks.sel(order=claim.versus).values
    else:
        theirs = data[claim.versus].values
        alive = alive & (theirs > 0)
    matrix = orders.rank_correlations(ours, alive, match)
    matrix = matrix - orders.rank_correlations(theirs, alive, match)
    return Measured(orders.stability(matrix), "difference of rank correlations", claim.region)


def near_one(data: xr.Dataset, claim: Claim, _: float) -> Measured:
    """Components of the mean over runs of alpha(k) within 0.1 of 1, as a share of k."""
    estimate = orders.share_near_one(data.ranks.sel(order=claim.order).values, data.k.values)
    return Measured(estimate, "share of k", claim.region)


def mask_correlation(data: xr.Dataset, claim: Claim, _: float) -> Measured:
    """Correlation of alpha(k) between runs: 0 where the components of its mean are equal."""
    ranks = data.ranks.sel(order=claim.order).values
    matrix = orders.mask_correlations(ranks, data.k.values)
    return Measured(orders.stability(matrix), "correlation of alpha(k)", claim.region)


def feature_order(data: xr.Dataset, claim: Claim, _: float) -> Measured:
    """Rank correlation of the order with the size of the weights that the data were drawn from."""
    ranks = data.ranks.sel(order=claim.order).values
    importance = np.broadcast_to(np.abs(data.w_true.values), ranks.shape)
    each = [spearmanr(*pair).statistic for pair in zip(ranks, importance, strict=True)]
    return Measured(mean_difference(each, np.zeros(len(each))), "rank correlation", claim.region)


def covariance_error(data: xr.Dataset, claim: Claim, _: float) -> Measured:
    r"""Relative error of diag(C_t0) against the exact one at w_t0, its factor 1 - 1/S made up for.

    :math:`\sum_j |\hat C_{jj} - C_{jj}| / \sum_j C_{jj}`.
    """
    estimate = data.variance.values / (1 - 1 / _settings(data)["S"])
    exact = data.exact_variance.values
    each = np.abs(estimate - exact).sum(1) / exact.sum(1)
    return Measured(mean_difference(each, np.zeros(len(each))), "relative error", claim.region)


def covariance_order(data: xr.Dataset, claim: Claim, _: float) -> Measured:
    """Rank correlation of diag(C_t0) with the exact one at w_t0, on untied parameters."""
    each = []
    for estimate, exact in zip(data.variance.values, data.exact_variance.values, strict=True):
        alive = (estimate > 0) & (exact > 0)
        each.append(spearmanr(estimate[alive], exact[alive]).statistic)
    return Measured(mean_difference(each, np.zeros(len(each))), "rank correlation", claim.region)


def step_time(data: xr.Dataset, claim: Claim, _: float) -> Measured:
    """Time of a training step with the share k / p frozen, as a ratio to that with k = 0.

    From ``seconds`` (run, k): each run is one round of timings, taken in turn.
    """
    seconds = data.seconds.transpose("run", "k")
    frozen = seconds.sel(k=claim.share * float(data.k[-1]), method="nearest")
    ratio = Ratio(frozen.values, seconds.sel(k=0).values)
    return Measured(ratio, "ratio of times", claim.region)


class Metric(NamedTuple):
    """A metric, its test, and the optional fields of a claim that it must and may have."""

    measure: Callable[[xr.Dataset, Claim, float], Measured]
    test: str
    needs: Set[str] = frozenset()
    takes: Set[str] = frozenset()


METRICS = {
    "growth": Metric(growth, "paired t", {"order", "versus", "splits"}),
    "advantage_lost_with_width": Metric(
        advantage_lost_with_width, "t, delta method", {"order", "versus", "splits"}
    ),
    "spread": Metric(spread, "jackknife t", {"order", "versus", "splits"}),
    "freezable_share": Metric(
        freezable_share, "jackknife t", {"order", "splits", "tolerance"}, {"versus"}
    ),
    "stability": Metric(stability, "jackknife t", {"order"}, {"versus"}),
    "near_one": Metric(near_one, "jackknife t", {"order"}),
    "mask_correlation": Metric(mask_correlation, "jackknife t", {"order"}),
    "feature_order": Metric(feature_order, "t", {"order"}),
    "covariance_error": Metric(covariance_error, "t"),
    "covariance_order": Metric(covariance_order, "t"),
    "step_time": Metric(step_time, "paired t", {"share"}),
}


def _settings(data: xr.Dataset) -> dict:
    return json.loads(data.attrs["provenance"])["settings"]


def _sizes(data: xr.Dataset) -> dict[str, int]:
    names, first, counts = np.unique(data.tensor.values, return_index=True, return_counts=True)
    return {str(names[i]): int(counts[i]) for i in np.argsort(first)}
