"""Each metric looks at the right part of the results, and at nothing else.

What it computes of that is tested with growth, stability and statistics.
"""

import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from parameter_ordering.paper.evidence.metrics import METRICS
from parameter_ordering.paper.evidence.statistics import mean_difference
from parameter_ordering.paper.evidence.verdict import CANNOT, NOT_SUPPORTED, SUPPORTED

# As the results are made up.
RUNS, P = 25, 60
K = np.arange(0, P + 1, 3)
SHARE = K / P


@pytest.fixture
def measure(claim):
    """The quantity that a claim of the given fields is about."""

    def measure(data, split="test", **changes):
        each = claim(**changes)
        return METRICS[each.metric].measure(data.sel(split=split), each)

    return measure


def test_growth_looks_at_its_split_and_orders(results, measure):
    data = results(ratio=0.5)
    assert measure(data).quantity.value == pytest.approx(0.5, abs=0.02)
    assert measure(data, split="train").quantity.value == pytest.approx(1.0, abs=0.02)
    swapped = measure(data, order="random", versus="covariance")
    assert swapped.quantity.value == pytest.approx(2.0, abs=0.08)


@pytest.mark.parametrize("size", [0.0, -1.0])
def test_where_nothing_grows_there_is_no_ratio(size, results, measure):
    measured = measure(results(size=size))
    assert measured.quantity is None
    assert measured.unit == "ratio of growth"
    assert measured.why == "there is no growth to compare with"


def test_a_little_growth_that_is_sure_has_a_ratio(results, measure):
    assert measure(results(size=0.01)).quantity.value == pytest.approx(0.5, abs=0.03)


def test_where_growth_is_large_but_uncertain_there_is_no_ratio_either(results, measure, judge_one):
    data = results(size=2.0)
    noise = np.random.default_rng(8).normal(size=RUNS)
    data["loss"][:, 1] = data.loss[:, 1] + 2 * noise[:, None] * SHARE
    assert measure(data).quantity is None
    assert judge_one(data).verdict == CANNOT


@pytest.mark.parametrize(
    ("ratio", "slower", "same"), [(0.5, SUPPORTED, NOT_SUPPORTED), (1.0, NOT_SUPPORTED, SUPPORTED)]
)
def test_slower_and_the_same(ratio, slower, same, results, judge_one):
    data = results(ratio=ratio)
    assert judge_one(data).verdict == slower
    within = {"direction": "within", "threshold": [0.8, 1.25], "test": "TOST, paired t"}
    assert judge_one(data, **within).verdict == same


@pytest.mark.parametrize(("narrow", "wide", "value"), [(0.5, 0.9, 1.8), (0.9, 0.45, 0.5)])
def test_advantage_lost_with_width(narrow, wide, value, results, measure):
    data = xr.concat(
        [results(ratio=narrow), results(1, ratio=1.0), results(2, ratio=wide)], "width"
    )
    measured = measure(data, metric="advantage_lost_with_width", direction="greater", threshold=1.1)
    low, high = measured.quantity.interval()
    assert low < value < high
    assert high / low < 1.2
    a, b = (measure(data.isel(width=end)).quantity for end in (0, 2))
    error = math.hypot(a.standard_error / a.value, b.standard_error / b.value)
    assert measured.quantity.standard_error == pytest.approx(error)


def test_advantage_lost_with_width_where_nothing_grows(results, measure):
    data = xr.concat([results(ratio=0.5), results(1, ratio=0.5, size=0.0)], "width")
    measured = measure(data, metric="advantage_lost_with_width", direction="greater", threshold=1.1)
    assert measured.quantity is None


def test_spread(results, measure):
    data = results()
    data["loss"][:, 0] = 10 + 0.5 * (data.loss[:, 1] - 10)
    measured = measure(data, metric="spread")
    assert measured.quantity.value == pytest.approx(0.25)


LOSS_AT = {"metric": "loss_at_share", "versus": None, "share": 0.5, "threshold": 1.05}


def test_loss_at_share(results, measure):
    """Growth 0.5 share^2 of a loss of 2: at half of the parameters a sixteenth."""
    measured = measure(results(ratio=0.5), **LOSS_AT)
    assert measured.unit == "ratio of losses"
    assert measured.quantity.value == pytest.approx(1 + 0.5 / 4 / 2, abs=0.02)
    other = measure(results(ratio=0.5), **LOSS_AT | {"share": 0.9}, order="random")
    assert other.quantity.value == pytest.approx(1 + 0.9**2 / 2, abs=0.05)


@pytest.mark.parametrize("direction", ["less", "greater"])
def test_loss_at_share_is_nothing_of_an_order_where_all_can_be_frozen(direction, results, measure):
    measured = measure(results(size=0.1), **LOSS_AT, direction=direction)
    assert measured.quantity is None
    assert measured.why == "even all parameters can be frozen"


def test_converged_share(results, measure):
    fields = {"metric": "converged_share", "tolerance": 0.1, "order": None, "versus": None}
    data = results()
    data["w_late"] = data.w0 + 1.0
    way = np.where(np.arange(P) < P // 4, 0.95, 0.85)
    data["w"] = data.w0 + way
    measured = measure(data, **fields, splits=None)
    assert measured.quantity.value == pytest.approx(0.25)
    data["w_late"] = data.w0.copy()
    data["w"] = data.w0.copy()
    assert measure(data, **fields, splits=None).quantity.value == 1  # what never moves is there


STABILITY = {"metric": "stability", "direction": "greater", "threshold": 0.5, "splits": None}


def test_stability_of_an_order_and_against_the_start(results, measure):
    data = results(stable=0.9, start=0.3)
    stable, random = (measure(data, **STABILITY, order=o, versus=None) for o in data.order.values)
    assert stable.quantity.value == pytest.approx(0.81, abs=0.05)
    assert random.quantity.value == pytest.approx(0.0, abs=0.02)
    start = measure(data, **STABILITY, versus="start_variance")
    assert start.quantity.value == pytest.approx(0.81 - 0.09, abs=0.06)
    other = measure(data, **STABILITY, versus="random")
    assert other.quantity.value == pytest.approx(stable.quantity.value, abs=0.02)


def test_stability_leaves_out_what_never_varied(results, measure):
    data = results(stable=0.9)
    dead = np.random.default_rng(5).uniform(size=(RUNS, P)) < 0.3
    data["variance"] = data.variance.where(~dead, 0.0)
    noise = np.random.default_rng(6).permuted(np.tile(np.arange(1, P + 1), (RUNS, 1)), axis=1)
    data["ranks"] = data.ranks.where(~dead, xr.DataArray(noise, dims=("run", "parameter")))
    alone = measure(data, **STABILITY, versus=None)
    assert alone.quantity.value == pytest.approx(0.81, abs=0.05)


def test_stability_against_the_start_leaves_out_what_did_not_vary_there(results, measure):
    data = results(stable=0.9, start=0.3)
    data["start_variance"][:, : P // 2] = 0.0
    measured = measure(data, **STABILITY, versus="start_variance")
    rest = data.isel(parameter=slice(P // 2, None))
    expected = measure(rest, **STABILITY, versus="start_variance")
    assert measured.quantity == expected.quantity


@pytest.mark.parametrize("shared_weights", [False, True])
def test_stability_matches_hidden_units_of_independent_weights_only(
    shared_weights, results, measure
):
    data = results(stable=1.0, shared_weights=shared_weights)
    sizes = {"0.weight": 40, "0.bias": 5, "2.weight": 10, "2.bias": 2}  # 8-5-2, 57 parameters
    data = data.isel(parameter=slice(sum(sizes.values())))
    data["tensor"] = ("parameter", np.repeat(list(sizes), list(sizes.values())))
    rng = np.random.default_rng(7)
    shuffled = np.empty((RUNS, data.sizes["parameter"]), int)
    for run in range(RUNS):
        units = rng.permutation(5)
        places = np.split(np.arange(57), [40, 45, 55])
        places[0] = places[0].reshape(5, 8)[units].ravel()
        places[1] = places[1][units]
        places[2] = places[2].reshape(2, 5)[:, units].ravel()
        shuffled[run] = np.concatenate(places)
    weights = rng.normal(size=57)
    data["w"] = (("run", "parameter"), weights[shuffled])
    data["ranks"][0] = data.ranks[0, 0].values[shuffled]
    data["start_variance"] = (("run", "parameter"), data.start_variance.values[0][shuffled])
    value = measure(data, **STABILITY, versus=None).quantity.value
    assert (value > 0.999) != shared_weights
    more = measure(data, **STABILITY, versus="start_variance").quantity.value
    assert (abs(more) < 1e-6) != shared_weights


def test_near_one_and_mask_correlation(results, measure):
    data = results(stable=1.0)
    fields = {"splits": None, "versus": None, "direction": "greater", "threshold": 0.5}
    for metric in ("near_one", "mask_correlation"):
        assert measure(data, **fields, metric=metric).quantity.value == pytest.approx(1, abs=1e-6)
        other = measure(data, **fields, metric=metric, order="random")
        assert other.quantity.value < 0.2


@pytest.mark.parametrize("by_run", [False, True])
def test_feature_order(by_run, results, measure):
    data = results(stable=0.9)
    if by_run:
        data["w_true"] = data.w_true.expand_dims(run=RUNS)
    measured = measure(data, metric="feature_order", versus=None, splits=None)
    each = [
        stats.spearmanr(ranks, np.abs(results(stable=0.9).w_true)).statistic
        for ranks in data.ranks.values[0]
    ]
    assert measured.quantity == mean_difference(each, np.zeros(RUNS))
    assert measured.quantity.value == pytest.approx(0.9, abs=0.05)


def test_covariance_error_makes_up_for_the_known_factor(results, measure):
    fields = {"metric": "covariance_error", "order": None, "versus": None, "splits": None}
    data = results(S=4)
    data["exact_variance"] = data.variance * 4 / 3
    assert measure(data, **fields).quantity.value == pytest.approx(0, abs=1e-12)
    data["exact_variance"][:, : P // 2] *= 2
    estimate, exact = data.variance.values * 4 / 3, data.exact_variance.values
    expected = np.mean([sum(abs(a - b)) / sum(b) for a, b in zip(estimate, exact, strict=True)])
    assert measure(data, **fields).quantity.value == pytest.approx(expected)
    assert expected > 0.2


def test_covariance_order_leaves_out_what_never_varied(results, measure):
    fields = {"metric": "covariance_order", "order": None, "versus": None, "splits": None}
    data = results()
    assert measure(data, **fields).quantity.value == pytest.approx(1)
    data["variance"][:, :10] = 0
    assert measure(data, **fields).quantity.value == pytest.approx(1)
    data["exact_variance"] = 1 / data.exact_variance
    assert measure(data, **fields).quantity.value == pytest.approx(-1)
    data["exact_variance"][:, 10:20] = 0
    assert measure(data, **fields).quantity.value == pytest.approx(-1)


def test_step_time(judge_one):
    rng = np.random.default_rng(0)
    seconds = (1 - SHARE / 3) * (1 + 0.01 * rng.normal(size=(RUNS, 1)))
    data = xr.Dataset({"seconds": (("run", "k"), seconds)}, {"k": K})
    fields = {"metric": "step_time", "share": 0.9, "order": None, "versus": None, "splits": None}
    row = judge_one(data, **fields, threshold=0.75)
    assert row.estimate == pytest.approx(0.7)
    assert row.verdict == SUPPORTED
    assert judge_one(data, **fields, threshold=0.65).verdict == NOT_SUPPORTED
    noisy = data.assign(seconds=data.seconds * np.exp(rng.normal(size=(RUNS, 1))))
    assert judge_one(noisy, **fields, threshold=0.75).estimate == pytest.approx(0.7)
