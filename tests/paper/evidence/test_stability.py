"""Stability of orders: by loops over pairs, on hidden units shuffled by hand, on random orders.

Random orders are the null: matching by weights must leave their correlation at 0, with exactly the
stated spread; matching by ranks does not, and its null is random orders matched likewise.
"""

import itertools

import numpy as np
import pytest
from scipy import stats

from parameter_ordering.paper.evidence.stability import (
    hidden_units,
    mask_correlations,
    match_by_weights,
    rank_correlations,
    share_near_one,
    stability,
)

N, H, OUTPUTS = 6, 5, 2
SIZES = {"0.weight": N * H, "0.bias": H, "2.weight": OUTPUTS * H, "2.bias": OUTPUTS}
P = sum(SIZES.values())
UNITS = hidden_units(SIZES)
simulations = pytest.mark.parametrize("n", [200, pytest.param(2000, marks=pytest.mark.slow)])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ranks_of(scores):
    return scores.argsort(1).argsort(1) + 1


def random_ranks(rng, runs=25, p=P):
    return ranks_of(rng.normal(size=(runs, p)))


def common_order(rng, runs=25, p=100, correlation=0.5):
    """Scores that share a normal part: any two runs have the given correlation."""
    common, own = rng.normal(size=p), rng.normal(size=(runs, p))
    return ranks_of(np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own)


def flatten(hidden, bias, outgoing, output_bias):
    return np.concatenate([hidden.ravel(), bias, outgoing.ravel(), output_bias])


def shuffle_units(vector, permutation):
    """The parameters of the same perceptron with its hidden units in another sequence."""
    hidden, bias, outgoing, output_bias = np.split(vector, np.cumsum(list(SIZES.values()))[:-1])
    return flatten(
        hidden.reshape(H, N)[permutation],
        bias[permutation],
        outgoing.reshape(OUTPUTS, H)[:, permutation],
        output_bias,
    )


def test_hidden_units_by_hand():
    labels = flatten(
        np.array([[f"w{u}{i}" for i in range(N)] for u in range(H)]),
        np.array([f"b{u}" for u in range(H)]),
        np.array([[f"a{o}{u}" for u in range(H)] for o in range(OUTPUTS)]),
        np.array(["c0", "c1"]),
    )
    for u in range(H):
        assert labels[UNITS.incoming[u]].tolist() == [f"w{u}{i}" for i in range(N)] + [f"b{u}"]
        assert labels[UNITS.outgoing[u]].tolist() == [f"a{o}{u}" for o in range(OUTPUTS)]


def test_a_linear_model_has_no_hidden_units():
    assert hidden_units({"0.weight": 200}) is None


def test_other_models_are_refused():
    for sizes in ({"a": 4, "b": 2}, {"a": 4, "b": 2, "c": 5, "d": 2}):
        with pytest.raises(ValueError, match="not a perceptron with one hidden layer"):
            hidden_units(sizes)


@pytest.mark.parametrize("matched", [False, True])
def test_rank_correlations_by_loops(rng, matched):
    ranks, alive = random_ranks(rng, runs=5), rng.uniform(size=(5, P)) < 0.7
    match = match_by_weights(rng.normal(size=(5, P)), UNITS) if matched else None
    ours = rank_correlations(ranks, alive, match)
    for a, b in itertools.combinations(range(5), 2):
        places = match(a, b) if matched else range(P)
        pairs = [
            (ranks[a, i], ranks[b, j]) for i, j in enumerate(places) if alive[a, i] and alive[b, j]
        ]
        expected = stats.spearmanr(*zip(*pairs, strict=True)).statistic
        assert ours[a, b] == ours[b, a] == pytest.approx(expected)
    assert (np.diag(ours) == 1).all()


def test_scores_with_ties_will_do_for_ranks(rng):
    scores = rng.integers(4, size=(2, 50))
    expected = stats.spearmanr(*scores).statistic
    assert rank_correlations(scores)[0, 1] == pytest.approx(expected)


def test_runs_without_common_parameters_are_named(rng):
    alive = np.zeros((3, P), bool)
    alive[:2] = True
    with pytest.raises(ValueError, match="runs 0 and 2 have 0 parameters in common"):
        rank_correlations(random_ranks(rng, 3), alive)


def test_matching_undoes_a_shuffle_of_the_units(rng):
    """The same network in another sequence, rescaled unit by unit, has the same order."""
    weights, scores = rng.normal(size=P), rng.normal(size=P)
    scale = np.ones(P)
    for u in range(H):
        c = rng.uniform(0.1, 10)
        scale[UNITS.incoming[u]], scale[UNITS.outgoing[u]] = c, 1 / c
    permutations = [rng.permutation(H) for _ in range(4)]
    ranks = ranks_of(np.array([shuffle_units(scores, each) for each in permutations]))
    shuffled = np.array([shuffle_units(weights * scale, each) for each in permutations])
    shuffled[0] = shuffle_units(weights, permutations[0])
    match = match_by_weights(shuffled, UNITS)
    np.testing.assert_allclose(rank_correlations(ranks, match=match), 1.0)
    assert stability(rank_correlations(ranks)).value < 0.9


def test_matching_finds_the_best_of_all_assignments(rng):
    weights = rng.normal(size=(2, P))
    places = match_by_weights(weights, UNITS)(0, 1)

    def similarity(permutation):
        total = 0
        for u, v in enumerate(permutation):
            cosines = [
                np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)
                for part in UNITS
                for x, y in [(weights[0, part[u]], weights[1, part[v]])]
            ]
            total += cosines[0] * cosines[1]
        return total

    best = max(itertools.permutations(range(H)), key=similarity)
    np.testing.assert_array_equal(places, shuffle_units(np.arange(P), list(best)))


def test_dead_units_are_matched_too(rng):
    weights = rng.normal(size=(2, P))
    weights[:, UNITS.incoming[0]] = 0
    places = match_by_weights(weights, UNITS)(0, 1)
    np.testing.assert_array_equal(np.sort(places), np.arange(P))


def test_stability_by_loops(rng):
    rho = rank_correlations(common_order(rng, runs=6))
    ours = stability(rho)

    def mean(runs):
        return np.mean([rho[a, b] for a, b in itertools.combinations(runs, 2)])

    parts = [mean([r for r in range(6) if r != left]) for left in range(6)]
    assert ours.value == pytest.approx(mean(range(6)))
    assert ours.standard_error == pytest.approx(
        np.sqrt(5 / 6 * sum((part - np.mean(parts)) ** 2 for part in parts))
    )


def test_stability_is_kendalls_concordance(rng):
    ranks = common_order(rng, runs=7)
    R, p = ranks.shape
    concordance = 12 * ((ranks.sum(0) - R * (p + 1) / 2) ** 2).sum() / (R**2 * (p**3 - p))
    rho = stability(rank_correlations(ranks)).value
    assert concordance == pytest.approx((1 + (R - 1) * rho) / R)


def test_two_runs_are_too_few(rng):
    with pytest.raises(ValueError, match="3 runs or more, got 2"):
        stability(np.ones((2, 2)))


@simulations
@pytest.mark.parametrize("match", ["none", "weights"])
def test_random_orders_have_no_stability(n, match, plausible):
    """Mean 0 and the exact standard deviation, also after matching by weights."""
    rng = np.random.default_rng(1)
    R, values, sees = 8, [], 0
    for _ in range(n):
        by = match_by_weights(rng.normal(size=(R, P)), UNITS) if match == "weights" else None
        estimate = stability(rank_correlations(random_ranks(rng, R), match=by))
        values.append(estimate.value)
        low, high = estimate.interval()
        sees += not low <= 0 <= high
    exact = np.sqrt(2 / (R * (R - 1) * (P - 1)))
    assert abs(np.mean(values)) < 4 * exact / np.sqrt(n)
    assert np.std(values) == pytest.approx(exact, rel=5 / np.sqrt(n))
    assert plausible(sees, n, 0, 0.05)


def test_matching_by_ranks_would_find_agreement_where_there_is_none(rng):
    """So units are matched by their weights."""
    ranks = random_ranks(rng)

    def best_for_the_ranks(a, b):
        arrangements = itertools.permutations(range(H))
        places = [shuffle_units(np.arange(P), list(each)) for each in arrangements]
        return max(places, key=lambda each: stats.spearmanr(ranks[a], ranks[b][each]).statistic)

    assert stability(rank_correlations(ranks, match=best_for_the_ranks)).interval()[0] > 0.05


@simulations
def test_false_positives_of_stability(n, plausible):
    """The 95 % interval misses the truth in about 5 % of the cases.

    The parameters and the part of their scores that runs share stay, as in one data set; the truth
    is the mean over the simulations.
    """
    rng = np.random.default_rng(2)
    common = rng.normal(size=60)
    estimates = []
    for _ in range(n):
        share = rng.uniform(0.3, 0.9, size=(12, 1))
        own = rng.normal(size=(12, 60))
        scores = share * common + np.sqrt(1 - share**2) * own
        estimates.append(stability(rank_correlations(scores)))
    truth = np.mean([each.value for each in estimates])
    missed = sum(not low <= truth <= high for low, high in (e.interval() for e in estimates))
    assert plausible(missed, n, 0.04, 0.08)


def test_a_stable_order_is_told_from_one_that_is_not(rng):
    assert stability(rank_correlations(common_order(rng, correlation=0.7))).interval()[0] > 0.5
    assert stability(rank_correlations(common_order(rng, correlation=0.3))).interval()[1] < 0.5


def test_mask_correlations_by_loops(rng):
    ranks, k = common_order(rng, runs=4, p=20), [0, 5, 8, 19, 20]
    ours = mask_correlations(ranks, k)
    for a, b in itertools.product(range(4), repeat=2):
        each = [np.corrcoef(ranks[a] <= i, ranks[b] <= i)[0, 1] for i in k[1:-1]]
        assert ours[a, b] == pytest.approx(np.mean(each), abs=1e-6)


def test_mask_correlations_are_how_unequal_the_components_are(rng):
    """The variance of alpha_hat(k) over components, as stated."""
    ranks, k, p = common_order(rng), 30, 100
    R = len(ranks)
    alpha_hat = (ranks <= k).mean(0)
    rho = stability(mask_correlations(ranks, [0, k, p])).value
    expected = k / p * (1 - k / p) * (1 + (R - 1) * rho) / R
    assert alpha_hat.var() == pytest.approx(expected, rel=1e-5)


def test_random_masks_are_uncorrelated_and_equal_ones_are_not(rng):
    k = np.arange(0, 105, 5)
    random, same = random_ranks(rng, p=100), np.tile(rng.permutation(100) + 1, (25, 1))
    assert abs(stability(mask_correlations(random, k)).value) < 0.02
    assert stability(mask_correlations(same, k)).value == pytest.approx(1, abs=1e-6)


def test_share_near_one_by_loops(rng):
    ranks, k = common_order(rng, runs=10, p=20, correlation=0.9), [0, 5, 8, 19, 20]
    shares = []
    for each in k[1:-1]:
        times_frozen = [sum(ranks[r, i] <= each for r in range(10)) for i in range(20)]
        shares.append(sum(times >= 9 for times in times_frozen) / each)
    assert share_near_one(ranks, k).value == pytest.approx(np.mean(shares))


def test_share_near_one_of_equal_and_of_random_orders(rng):
    p, k = 400, np.arange(0, 420, 20)
    same = np.tile(rng.permutation(p) + 1, (25, 1))
    assert share_near_one(same, k).value == 1.0
    assert share_near_one(same, k).standard_error == 0.0
    share = k[1:-1] / p
    by_chance = np.mean(stats.binom.sf(22, 25, share) / share)
    assert share_near_one(random_ranks(rng, p=p), k).value == pytest.approx(by_chance, abs=0.02)


@simulations
def test_false_positives_of_share_near_one(n, plausible):
    """The jackknife of a step function is too wide rather than too narrow."""
    rng = np.random.default_rng(3)
    common, k = rng.normal(size=60), np.arange(0, 63, 3)
    estimates = []
    for _ in range(n):
        share = rng.uniform(0.5, 0.98, size=(25, 1))
        scores = share * common + np.sqrt(1 - share**2) * rng.normal(size=(25, 60))
        estimates.append(share_near_one(ranks_of(scores), k))
    truth = np.mean([each.value for each in estimates])
    missed = sum(not low <= truth <= high for low, high in (e.interval() for e in estimates))
    assert plausible(missed, n, 0, 0.05)
