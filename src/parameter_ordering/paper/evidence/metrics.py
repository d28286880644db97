"""The quantities that claims are about, read off the results of an experiment.

Results are what :meth:`~.experiment.Experiment.run` gives. A metric takes them, for one part of the
data where it looks at the loss, and the claim; ``METRICS`` says of each which fields of the claim
it reads and which test comes with it.
"""

import json
from collections.abc import Callable, Set
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import spearmanr

from parameter_ordering.paper.evidence import stability as orders
from parameter_ordering.paper.evidence.claims import Claim
from parameter_ordering.paper.evidence.growth import mean_growth, spread_ratio
from parameter_ordering.paper.evidence.statistics import (
    Estimate,
    Inference,
    Ratio,
    is_well_above_zero,
    mean_difference,
)

NO_GROWTH = "there is no growth to compare with"


class Measured(NamedTuple):
    """A quantity and its unit, or why there is no such quantity."""

    quantity: Inference | None
    unit: str
    why: str = ""


def growth(data: xr.Dataset, claim: Claim) -> Measured:
    """Ratio of the growth of two orders, averaged over interior k.

    There is none where the growth of the order compared with is not well above 0.
    """
    loss = data.loss.sel(order=[claim.order, claim.versus])
    ours, theirs = mean_growth(loss).transpose("order", "run").values
    if is_well_above_zero(theirs):
        return Measured(Ratio(ours, theirs), "ratio of growth")
    return Measured(None, "ratio of growth", NO_GROWTH)


def advantage_lost_with_width(data: xr.Dataset, claim: Claim) -> Measured:
    """Ratio of growth in the widest net over that in the narrowest, each at the same stage.

    The results have a dimension ``width``. Above 1 if the order compared with catches up as the net
    becomes wider. There is none where either ratio is not well above 0 itself.
    """
    narrow, wide = (growth(data.isel(width=end), claim).quantity for end in (0, -1))
    unit = "ratio of ratios of growth"
    if narrow is None or wide is None or min(narrow.value, wide.value) <= 0:
        return Measured(None, unit, NO_GROWTH)
    error = np.hypot(narrow.standard_error / narrow.value, wide.standard_error / wide.value)
    return Measured(Estimate(wide.value / narrow.value, float(error), wide.df, True), unit)


def loss_at_share(data: xr.Dataset, claim: Claim) -> Measured:
    """Loss with a share of all parameters frozen, as a ratio to that with none.

    There is none where the loss stays within the threshold even with everything frozen: what holds
    of all parameters in any order says nothing of some in this one.
    """
    loss = data.loss.sel(order=claim.order).transpose("k", "run")
    nothing, everything = loss.isel(k=0), loss.isel(k=-1)
    bound = max(each for each in claim.region if np.isfinite(each))
    if float(everything.mean() / nothing.mean()) <= bound:
        return Measured(None, "ratio of losses", "even all parameters can be frozen")
    assert claim.share is not None
    frozen = loss.sel(k=claim.share * float(loss.k[-1]), method="nearest")
    return Measured(Ratio(frozen.values, nothing.values), "ratio of losses")


def converged_share(data: xr.Dataset, claim: Claim) -> Measured:
    """Share of parameters that have come to within ``tolerance`` of their way to the late weights.

    The way is from w_0 to the weights at the late stage of the same run.
    """
    way = np.abs(data.w_late - data.w0)
    each = (np.abs(data.w_late - data.w) <= claim.tolerance * way).mean("parameter")
    return Measured(mean_difference(each.values, np.zeros(each.size)), "share of p")


def spread(data: xr.Dataset, claim: Claim) -> Measured:
    """Ratio of the variances over runs of the loss of two orders."""
    ours, theirs = (data.loss.sel(order=order) for order in (claim.order, claim.versus))
    return Measured(spread_ratio(ours, theirs), "ratio of variances over runs")


def stability(data: xr.Dataset, claim: Claim) -> Measured:
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
        return Measured(orders.stability(matrix), "rank correlation")
    if claim.versus in data.order:
        theirs = data.ranks.sel(order=claim.versus).values
    else:
        theirs = data[claim.versus].values
        alive = alive & (theirs > 0)
    matrix = orders.rank_correlations(ours, alive, match)
    matrix = matrix - orders.rank_correlations(theirs, alive, match)
    return Measured(orders.stability(matrix), "difference of rank correlations")


def near_one(data: xr.Dataset, claim: Claim) -> Measured:
    """Components of the mean over runs of alpha(k) within 0.1 of 1, as a share of k."""
    estimate = orders.share_near_one(data.ranks.sel(order=claim.order).values, data.k.values)
    return Measured(estimate, "share of k")


def mask_correlation(data: xr.Dataset, claim: Claim) -> Measured:
    """Correlation of alpha(k) between runs: 0 where the components of its mean are equal."""
    ranks = data.ranks.sel(order=claim.order).values
    matrix = orders.mask_correlations(ranks, data.k.values)
    return Measured(orders.stability(matrix), "correlation of alpha(k)")


def feature_order(data: xr.Dataset, claim: Claim) -> Measured:
    """Rank correlation of the order with the size of the weights that the data were drawn from."""
    ranks = data.ranks.sel(order=claim.order).values
    importance = np.broadcast_to(np.abs(data.w_true.values), ranks.shape)
    each = [spearmanr(*pair).statistic for pair in zip(ranks, importance, strict=True)]
    return Measured(mean_difference(each, np.zeros(len(each))), "rank correlation")


def covariance_error(data: xr.Dataset, claim: Claim) -> Measured:
    r"""Relative error of diag(C_t0) against the exact one at w_t0, its factor 1 - 1/S made up for.

    :math:`\sum_j |\hat C_{jj} - C_{jj}| / \sum_j C_{jj}`.
    """
    estimate = data.variance.values / (1 - 1 / _settings(data)["S"])
    exact = data.exact_variance.values
    each = np.abs(estimate - exact).sum(1) / exact.sum(1)
    return Measured(mean_difference(each, np.zeros(len(each))), "relative error")


def covariance_order(data: xr.Dataset, claim: Claim) -> Measured:
    """Rank correlation of diag(C_t0) with the exact one at w_t0, on untied parameters."""
    each = []
    for estimate, exact in zip(data.variance.values, data.exact_variance.values, strict=True):
        alive = (estimate > 0) & (exact > 0)
        each.append(spearmanr(estimate[alive], exact[alive]).statistic)
    return Measured(mean_difference(each, np.zeros(len(each))), "rank correlation")


def step_time(data: xr.Dataset, claim: Claim) -> Measured:
    """Time of a training step with the share k / p frozen, as a ratio to that with k = 0.

    From ``seconds`` (run, k): each run is one round of timings, taken in turn. The geometric mean
    over rounds: a round that something else on the machine disturbed counts like any other.
    """
    assert claim.share is not None
    seconds = data.seconds.transpose("run", "k")
    frozen = seconds.sel(k=claim.share * float(data.k[-1]), method="nearest")
    log = mean_difference(np.log(frozen.values), np.log(seconds.sel(k=0).values))
    ratio = Estimate(float(np.exp(log.value)), log.standard_error, log.df, logarithmic=True)
    return Measured(ratio, "ratio of times")


class Metric(NamedTuple):
    """A metric, its test, and the optional fields of a claim that it must and may have."""

    measure: Callable[[xr.Dataset, Claim], Measured]
    test: str
    needs: Set[str] = frozenset()
    takes: Set[str] = frozenset()


METRICS = {
    "growth": Metric(growth, "paired t", {"order", "versus", "splits"}),
    "advantage_lost_with_width": Metric(
        advantage_lost_with_width, "t, delta method", {"order", "versus", "splits"}
    ),
    "spread": Metric(spread, "jackknife t", {"order", "versus", "splits"}),
    "loss_at_share": Metric(loss_at_share, "paired t", {"order", "splits", "share"}),
    "converged_share": Metric(converged_share, "t", {"tolerance"}),
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
