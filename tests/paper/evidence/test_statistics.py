"""Estimates, intervals and verdicts on simulated runs whose truth is known.

Of nulls on a boundary, a share alpha may be decided wrongly and not more; an effect of the stated
size must be seen with the stated power. Shares are held against the binomial distribution of the
simulations, so that a rate off by a half fails. ``pytest -m slow`` takes thousands of nulls.
"""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from parameter_ordering.paper.evidence.statistics import (
    Estimate,
    Ratio,
    is_well_above_zero,
    jackknife,
    mean_difference,
)
from parameter_ordering.paper.evidence.verdict import (
    INCONCLUSIVE,
    NOT_SUPPORTED,
    SUPPORTED,
    evidence,
    holm,
    smallest_effect,
    verdict,
)

RUNS, ALPHA = 25, 0.05
simulations = pytest.mark.parametrize("n", [400, pytest.param(5000, marks=pytest.mark.slow)])


def assert_rate(count, n, rate):
    low, high = stats.binom.interval(0.9999, n, rate)
    assert low <= count <= high, f"{count} of {n}, expected {rate:.1%}"


def paired_runs(rng, ratio=1.0, noise=0.1):
    """Growth of two orders whose means are in the given ratio, correlated over runs."""
    common = 0.2 * rng.normal(size=RUNS)
    b = 1 + common + noise * rng.normal(size=RUNS)
    return ratio * (1 + common) + noise * rng.normal(size=RUNS), b


def decide(quantity, low=-math.inf, high=math.inf, alpha=ALPHA):
    return verdict(*evidence(quantity, low, high), alpha)


def test_mean_difference_is_the_paired_t_test():
    a, b = paired_runs(np.random.default_rng(0), ratio=0.9)
    ours, scipys = mean_difference(a, b), stats.ttest_rel(a, b)
    assert ours.t(0) == pytest.approx(scipys.statistic)
    assert ours.interval() == pytest.approx(tuple(scipys.confidence_interval()))
    assert evidence(ours, high=0.0).p == pytest.approx(scipys.pvalue)


def test_jackknife_of_a_mean_is_the_t_interval():
    a, b = paired_runs(np.random.default_rng(0))
    ours, expected = jackknife(lambda a, b: np.mean(a - b), a, b), mean_difference(a, b)
    assert ours.value == pytest.approx(expected.value)
    assert ours.standard_error == pytest.approx(expected.standard_error)
    assert ours.df == expected.df


def test_jackknife_of_a_logarithm():
    values = np.random.default_rng(0).lognormal(size=RUNS)
    ours = jackknife(lambda v: np.log(v).mean(), values, logarithmic=True)
    scipys = stats.ttest_1samp(np.log(values), np.log(1.3))
    assert ours.value == pytest.approx(stats.gmean(values))
    assert ours.t(1.3) == pytest.approx(scipys.statistic)
    assert np.log(ours.interval()) == pytest.approx(tuple(scipys.confidence_interval()))


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_interval_of_a_ratio_holds_what_its_test_does_not_reject(confidence):
    ratio = Ratio(*paired_runs(np.random.default_rng(0), ratio=0.8))
    q = stats.t(RUNS - 1).ppf((1 + confidence) / 2)
    low, high = ratio.interval(confidence)
    assert low < ratio.value < high
    assert ratio.t(low) == pytest.approx(q)
    assert ratio.t(high) == pytest.approx(-q)


def test_a_ratio_needs_a_denominator_well_above_zero():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=RUNS)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    half = stats.t(RUNS - 1).ppf(0.975) / math.sqrt(RUNS)
    assert is_well_above_zero(3.2 * half + noise)
    assert not is_well_above_zero(3.1 * half + noise)
    assert not is_well_above_zero(-10 + noise)
    with pytest.raises(ValueError, match="not well above 0: compare differences"):
        Ratio(noise, 3.1 * half + noise)


def test_the_interval_of_a_ratio_is_unbounded_where_the_denominator_may_be_zero():
    ratio = Ratio([1.0, 1.25, 1.25, 1.0], [2.0, 2.0, 2.5, 2.5])
    assert ratio.interval(1 - 1e-6) == (-math.inf, math.inf)


# A false claim on the boundary of its region may be called supported in alpha / 2 of the cases.
@simulations
@pytest.mark.parametrize("true_ratio", [0.5, 1.0])
def test_false_positives_of_a_ratio(n, true_ratio):
    rng = np.random.default_rng(1)
    verdicts = [decide(Ratio(*paired_runs(rng, true_ratio)), high=true_ratio) for _ in range(n)]
    assert_rate(verdicts.count(SUPPORTED), n, ALPHA / 2)
    assert_rate(verdicts.count(NOT_SUPPORTED), n, ALPHA / 2)


@simulations
@pytest.mark.parametrize("true_ratio", [0.8, 1.25])
def test_false_positives_of_an_equivalence(n, true_ratio):
    rng = np.random.default_rng(2)
    verdicts = [decide(Ratio(*paired_runs(rng, true_ratio)), 0.8, 1.25) for _ in range(n)]
    assert_rate(verdicts.count(SUPPORTED), n, ALPHA / 2)
    assert_rate(verdicts.count(NOT_SUPPORTED), n, ALPHA / 2)


def test_equivalence_is_supported_for_equal_orders_and_refused_for_different_ones():
    rng = np.random.default_rng(3)
    assert decide(Ratio(*paired_runs(rng, 1.0)), 0.8, 1.25) == SUPPORTED
    assert decide(Ratio(*paired_runs(rng, 0.5)), 0.8, 1.25) == NOT_SUPPORTED
    assert decide(Ratio(*paired_runs(rng, 2.0)), 0.8, 1.25) == NOT_SUPPORTED


def test_too_few_runs_make_no_verdict():
    wide = Estimate(1.0, 0.4, df=24)
    assert decide(wide, 0.8, 1.25) == INCONCLUSIVE
    assert decide(wide, high=1.5) == decide(wide, low=0.5) == INCONCLUSIVE


@simulations
@pytest.mark.parametrize("power", [0.5, 0.8])
def test_power_at_the_smallest_effect(n, power):
    rng = np.random.default_rng(4)
    effect = smallest_effect(1 / math.sqrt(RUNS), RUNS - 1, ALPHA, power)
    seen = 0
    for _ in range(n):
        difference = mean_difference(rng.normal(-effect, size=RUNS), np.zeros(RUNS))
        seen += decide(difference, high=0.0) == SUPPORTED
    assert_rate(seen, n, power)


@pytest.mark.parametrize("df", [2, 4, 24, 99])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 100])
def test_smallest_effect_by_integration(df, alpha):
    """Power of a t test as the mean, over the estimated deviation s, of a normal probability."""
    effect = smallest_effect(1.0, df, alpha, 0.8)
    q = stats.t(df).ppf(1 - alpha / 2)
    quantiles = (np.arange(200_000) + 0.5) / 200_000
    s = np.sqrt(stats.chi2(df).ppf(quantiles) / df)
    assert stats.norm.sf(q * s - effect).mean() == pytest.approx(0.8, abs=1e-4)


def slow_holm(p):
    """Reject while the smallest p left is at most alpha over how many are left, for every alpha."""
    adjusted = {}
    left, so_far = dict(enumerate(p)), 0.0
    while left:
        smallest = min(left, key=left.get)
        so_far = adjusted[smallest] = max(so_far, min(1.0, len(left) * left[smallest]))
        del left[smallest]
    return [adjusted[i] for i in range(len(p))]


def test_holm_against_its_definition():
    rng = np.random.default_rng(5)
    for m in (1, 2, 7, 40):
        p = rng.uniform(size=m) ** 3
        np.testing.assert_allclose(holm(p), slow_holm(p))
        np.testing.assert_array_equal(holm(p), multipletests(p, method="holm")[1])
    assert len(holm([])) == 0
    np.testing.assert_allclose(holm([0.02, 0.02, 1.0]), [0.06, 0.06, 1.0])


@simulations
def test_holm_keeps_the_rate_of_a_whole_ledger(n, plausible):
    """Ten false claims on their boundary beside ten true ones: any false one decided, in 5 %."""
    rng = np.random.default_rng(6)
    wrong = found = 0
    for _ in range(n):
        means = np.repeat([0.0, -2.0], 10)
        quantities = [Estimate(v, 1 / 5, 24) for v in _student_means(rng, means)]
        every = [evidence(each, high=0.0) for each in quantities]
        adjusted = holm([each.p for each in every])
        wrong += (adjusted[:10] <= ALPHA).any()
        found += (adjusted[10:] <= ALPHA).all()
    assert found == n
    assert plausible(wrong, n, ALPHA / 2, ALPHA)


def _student_means(rng, means):
    """Estimates with error 1/5 whose t statistics are Student's with 24 degrees of freedom."""
    return means + rng.standard_t(24, size=len(means)) / 5


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.5, -math.inf, 0.5, 1.0),
        (0.5, 0.5, math.inf, 1.0),
        (0.4, -math.inf, 0.5, 0.0),
        (0.5, 0.4, 0.6, 0.0),
    ],
)
def test_without_any_spread_the_value_itself_decides(value, low, high, expected):
    assert evidence(Estimate(value, 0.0, 24), low, high).p == expected


@pytest.mark.parametrize("inside", [True, False])
def test_the_verdict_is_where_the_interval_lies(inside):
    """p-value and interval say the same, from either side of either kind of region."""
    rng = np.random.default_rng(7)
    for _ in range(300):
        quantity = Estimate(rng.normal(), rng.uniform(0.01, 0.4), 24)
        low, high = sorted(rng.normal(size=2)) if inside else (-math.inf, rng.normal())
        a, b = quantity.interval(1 - ALPHA)
        expected = INCONCLUSIVE
        if low < a and b < high:
            expected = SUPPORTED
        elif b < low or high < a:
            expected = NOT_SUPPORTED
        assert decide(quantity, low, high) == expected


def test_bad_runs_are_named():
    with pytest.raises(ValueError, match=r"same runs, got \[3, 2\]"):
        mean_difference([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="2 runs or more"):
        mean_difference([1.0], [2.0])
    with pytest.raises(ValueError, match="run 1 holds values that are NaN"):
        mean_difference([1.0, math.nan], [1.0, 1.0])
    with pytest.raises(ValueError, match="run 0 holds values"):
        jackknife(np.mean, [[1.0, math.inf], [1.0, 2.0]])
