"""Growth of the loss, its spread over runs, how many can be frozen, on curves of known truth."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from parameter_ordering.paper.evidence.growth import (
    freezable,
    growth_ratio,
    growth_ratios,
    mean_growth,
    spread_ratio,
)

RUNS = 25
K = np.arange(0, 105, 5)
simulations = pytest.mark.parametrize("n", [300, pytest.param(4000, marks=pytest.mark.slow)])


def curves(values, k=K):
    return xr.DataArray(values, {"k": k}, ["run", "k"])


def spread_over_runs(rng, scale, heavy=False):
    """Losses of one order: runs differ by a common shift and anew at every k."""
    shift, own = rng.normal(size=(RUNS, 1)), rng.normal(size=(RUNS, len(K)))
    if heavy:
        own = rng.standard_t(5, size=own.shape)
    return curves(100 + scale * (shift + own) * np.exp(K / 20))


def test_mean_growth_by_loops():
    rng = np.random.default_rng(0)
    loss = xr.DataArray(
        rng.normal(size=(2, len(K), 3)), {"k": K, "order": ["a", "b"]}, ["order", "k", "run"]
    )
    growth = mean_growth(loss)
    assert growth.dims == ("order", "run")
    for order in range(2):
        for run in range(3):
            curve = loss.values[order, :, run].tolist()
            total = sum(each - curve[0] for each in curve[1:-1])
            assert growth.values[order, run] == pytest.approx(total / (len(K) - 2))


def two_orders(rng, k, ratio, splits=("train", "test")):
    """Results in which a run's growth in one order is ``ratio``, one number a k, times the other's.

    But for noise of a tenth; at the first interior k there is no growth.
    """
    growth = np.concatenate([[0, 0], np.linspace(1, 2, len(k) - 2)])
    noise = 1 + 0.1 * rng.normal(size=(len(splits), 2, RUNS, len(k)))
    loss = 5 + np.stack([growth * ratio, growth])[None, :, None] * noise
    places = {"split": list(splits), "order": ["covariance", "random"], "k": k}
    return xr.Dataset({"loss": (("split", "order", "run", "k"), loss)}, places)


def test_growth_ratios_are_those_of_each_k():
    k = [0, 5, 10, 15, 20]
    data = two_orders(np.random.default_rng(2), k, np.array([1, 1, 0.5, 2, 1]))
    ratios = growth_ratios(data, "covariance", "random", "train")
    assert list(ratios) == [5, 10, 15]
    assert ratios[5] is None
    for each in (10, 15):
        loss = data.loss.sel(split="train")
        ours, theirs = (loss.sel(k=each) - loss.sel(k=0)).transpose("order", "run").values
        assert ratios[each].value == pytest.approx(ours.mean() / theirs.mean())
        low, high = ratios[each].interval()
        assert low < {10: 0.5, 15: 2}[each] < high


def test_with_one_interior_k_the_two_ratios_are_the_same():
    data = two_orders(np.random.default_rng(3), [0, 5, 10], np.array([1, 1, 1]))
    data["loss"][..., 1] = data.loss[..., 2]
    alone = growth_ratios(data, "covariance", "random")[5]
    assert alone.value == pytest.approx(growth_ratio(data, "covariance", "random").value)


@pytest.mark.parametrize("k", [[0, 1], [1, 2, 3], [0, 2, 2], [3, 2, 0]])
def test_k_must_ascend_from_zero(k):
    with pytest.raises(ValueError, match="k must ascend from 0"):
        mean_growth(curves(np.zeros((2, len(k))), k))


def test_spread_ratio_by_loops():
    rng = np.random.default_rng(1)
    a, b = spread_over_runs(rng, 1.0), spread_over_runs(rng, 2.0)
    ratios = [a.values[:, i].var() / b.values[:, i].var() for i in range(1, len(K) - 1)]
    ours = spread_ratio(a, b)
    assert ours.value == pytest.approx(stats.gmean(ratios))
    assert spread_ratio(b, a).value == pytest.approx(1 / ours.value)
    assert spread_ratio(10 * a, 10 * b).value == pytest.approx(ours.value)


@simulations
@pytest.mark.parametrize("heavy", [False, True])
def test_false_positives_of_a_spread_ratio(n, heavy, plausible):
    """The 95 % interval misses a true ratio in about 5 % of the cases, for heavy tails too."""
    rng = np.random.default_rng(2)
    missed = 0
    for _ in range(n):
        a, b = (spread_over_runs(rng, scale, heavy) for scale in (0.5, 1.0))
        low, high = spread_ratio(a, b).interval()
        missed += not low <= 0.25 <= high
    assert plausible(missed, n, 0.03, 0.075)


def test_a_spread_a_quarter_as_large_is_told_from_an_equal_one():
    rng = np.random.default_rng(3)
    small, equal = spread_over_runs(rng, 0.25), spread_over_runs(rng, 1.0)
    versus = spread_over_runs(rng, 1.0)
    assert spread_ratio(small, versus).interval()[1] < 0.25
    assert spread_ratio(equal, versus).interval()[0] > 0.25


def test_without_spread_there_is_no_ratio():
    loss = spread_over_runs(np.random.default_rng(0), 1.0)
    constant = loss.copy()
    constant[:, 3] = 1.0
    with pytest.raises(ValueError, match="the same in all runs"):
        spread_ratio(loss, constant)


def test_freezable_on_a_parabola():
    """Growth 4 s^2 of the share s passes 1 % at s = 0.05, a grid point, and 25 % at 0.25."""
    loss = curves(np.tile(1 + 4 * (K / 100) ** 2, (RUNS, 1)))
    assert freezable(loss, 0.01).value == pytest.approx(0.05)
    assert freezable(loss, 0.25).value == pytest.approx(0.25)
    between = freezable(loss, 0.02).value  # linear from 0.01 at 0.05 to 0.04 at 0.10
    assert between == pytest.approx(0.05 + 0.05 / 3)
    assert freezable(loss, 0.02).standard_error == 0


def test_freezable_follows_the_first_crossing_of_the_mean():
    mean = np.ones(len(K))
    mean[4], mean[10:] = 1.2, 1.5
    noise = np.random.default_rng(4).normal(size=(RUNS, len(K)))
    loss = curves(mean + 0.3 * (noise - noise.mean(0)))
    assert freezable(loss, 0.1).value == pytest.approx(0.175)
    assert freezable(loss, 0.1).standard_error > 0


def test_everything_is_freezable_where_the_loss_does_not_grow():
    loss = curves(np.tile(1 - K / 1000, (RUNS, 1)))
    assert freezable(loss, 0.01).value == 1.0


@simulations
def test_false_positives_of_freezable(n, plausible):
    rng = np.random.default_rng(5)
    mean = 1 + 0.5 * K / 100
    missed = 0
    for _ in range(n):
        noise = 0.05 * rng.normal(size=(RUNS, 1)) * K / 100
        low, high = freezable(curves(mean + noise), 0.2).interval()
        missed += not low <= 0.4 <= high
    assert plausible(missed, n, 0.04, 0.06)


def test_freezable_against_another_order_is_paired():
    rng = np.random.default_rng(6)
    slope = 0.5 + 0.1 * rng.uniform(size=(RUNS, 1))
    slow, fast = curves(1 + slope * K / 200), curves(1 + slope * K / 100)
    difference = freezable(slow, 0.1, versus=fast)
    expected = freezable(slow, 0.1).value - freezable(fast, 0.1).value
    assert difference.value == pytest.approx(expected)
    assert freezable(slow, 0.1, versus=slow).standard_error == 0


def test_tolerance_must_be_positive():
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        freezable(curves(np.ones((RUNS, len(K)))), 0)
