"""The ledger on made-up results whose truth is known, and the book's own file of claims.

What a metric computes is tested with growth, stability and statistics; here, that each looks at the
right part of the results, that verdicts follow the rule among all rows, and that drift is told from
noise.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from scipy import stats

from parameter_ordering.evidence import claims as claims_module
from parameter_ordering.evidence.claims import Claim, Claims, Region, load_claims
from parameter_ordering.evidence.ledger import commit, drift, judge
from parameter_ordering.evidence.metrics import METRICS
from parameter_ordering.evidence.statistics import mean_difference
from parameter_ordering.evidence.verdict import INCONCLUSIVE, NOT_SUPPORTED, SUPPORTED
from parameter_ordering.strict_yaml import load_yaml

BOOK = Path(__file__).parents[2] / "chapters" / "claims.yml"
RUNS, P = 25, 60
K = np.arange(0, P + 1, 3)
SHARE = K / P


def claim(**changes):
    fields = {
        "id": "slower",
        "claim": "The loss grows more slowly.",
        "where": "figure 1",
        "experiments": ["made_up"],
        "t0": ["early"],
        "levels": ["one data set"],
        "metric": "growth",
        "order": "covariance",
        "versus": "random",
        "splits": ["test"],
        "direction": "less",
        "threshold": 0.95,
        "why": "It shows.",
        "test": "paired t",
        "margin": 0.05,
    }
    fields |= changes
    return Claim(**{name: value for name, value in fields.items() if value is not None})


def ledger(*every, **changes):
    return Claims(
        **{"runs": RUNS, "alpha": 0.05, "negligible": 0.01, "claims": list(every)} | changes
    )


def results(seed=0, ratio=0.5, size=1.0, stable=0.9, start=0.3, shared_weights=False, S=4):
    """One experiment: growth in the given ratio, orders of the given stability.

    Training losses grow as fast in both orders.
    """
    rng = np.random.default_rng(seed)
    orders = {"covariance": ratio, "random": 1.0}
    base, slope = 2 + 0.1 * rng.normal(size=RUNS), 1 + 0.2 * rng.normal(size=RUNS)
    loss = np.empty((2, 2, RUNS, len(K)))
    for o, factor in enumerate(orders.values()):
        for s, each in enumerate((1.0, factor)):
            noise = 0.02 * rng.normal(size=(RUNS, 1))
            loss[s, o] = base[:, None] + size * (each * slope[:, None] + noise) * SHARE**2
    common = rng.normal(size=P)

    def scores(share):
        own = rng.normal(size=(RUNS, P))
        return np.exp(share * common + math.sqrt(1 - share**2) * own)

    variance = scores(stable)
    ranks = np.stack([variance, rng.normal(size=(RUNS, P))]).argsort(2).argsort(2) + 1
    by_run = ("run", "parameter")
    return xr.Dataset(
        {
            "loss": (("split", "order", "run", "k"), loss),
            "ranks": (("order", *by_run), ranks),
            "variance": (by_run, variance),
            "exact_variance": (by_run, variance * rng.uniform(1.2, 1.4, (RUNS, 1))),
            "start_variance": (by_run, scores(start)),
            "w": (by_run, rng.normal(size=(RUNS, P))),
            "w_true": ("feature", np.exp(common) * rng.choice([-1, 1], P)),
        },
        {
            "split": ["train", "test"],
            "order": list(orders),
            "k": K,
            "tensor": ("parameter", np.repeat("0.weight", P)),
        },
        {"provenance": json.dumps({"settings": {"S": S, "shared_weights": shared_weights}})},
    )


def measure(data, split="test", **changes):
    each = claim(**changes)
    return METRICS[each.metric].measure(data.sel(split=split), each, 0.01)


def judge_one(data, **changes):
    (row,) = judge(ledger(claim(**changes)), {("made_up", "early"): data})
    return row


# The file of claims


def test_the_books_claims_are_in_order():
    book = load_claims(BOOK)
    assert len(book.claims) >= 20
    everything = {("", ""): None}
    with pytest.raises(ValueError, match="no verdicts") as error:
        judge(book, everything)
    for line in str(error.value).splitlines()[1:]:
        assert "there are no results of" in line


def test_the_books_claims_have_the_words_and_places_of_the_paper():
    book = load_claims(BOOK)
    for figure in range(1, 9):
        assert any(str(figure) in each.where.partition("figure")[2] for each in book.claims)
    for each in book.claims:
        assert each.why.endswith(".")
        assert each.claim.endswith(".")


def test_the_fields_of_the_file_are_those_of_the_claim():
    fields = {field.name for field in dataclasses.fields(Claim)}
    assert set(claims_module._CLAIM["properties"]) == fields
    optional = {f.name for f in dataclasses.fields(Claim) if f.default is None}
    assert set(claims_module.OPTIONAL) == optional
    assert set(claims_module._FILE["properties"]) == {f.name for f in dataclasses.fields(Claims)}


def written(tmp_path, edit):
    contents = yaml.safe_load(BOOK.read_text(encoding="utf-8"))
    edit(contents)
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump(contents), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("alpha"), "top level: 'alpha' is a required property"),
        (lambda c: c.update(alpha=1.0), "alpha: 1.0 is greater than or equal to the maximum"),
        (lambda c: c.update(runs=True), "runs: True is not of type 'integer'"),
        (lambda c: c["claims"].clear(), r"claims: \[\] should be non-empty"),
        (lambda c: c["claims"].append(3), "3 is not of type 'object'"),
        (lambda c: c["claims"][0].pop("why"), "synthetic_1-growth: 'why' is a required property"),
        (lambda c: c["claims"][0].update(colour="red"), "synthetic_1-growth: .*'colour' was unex"),
        (lambda c: c["claims"][0].update(t0=["late"]), "synthetic_1-growth, t0: 'late' is not one"),
        (lambda c: c["claims"][0].update(t0=[]), "synthetic_1-growth, t0: .*non-empty"),
        (lambda c: c["claims"][0].update(t0=["early"] * 2), "t0: .* has non-unique elements"),
        (lambda c: c["claims"][0].update(direction="up"), "direction: 'up' is not one of"),
        (
            lambda c: c["claims"][0].update(threshold=[0, 1]),
            "threshold: .* is not of type 'number'",
        ),
        (lambda c: c["claims"][0].update(threshold="0.5"), "threshold: '0.5' is not of type"),
        (lambda c: c["claims"][0].update(direction="within"), "threshold: 0.95 is not of type"),
        (
            lambda c: c["claims"][0].update(direction="within", threshold=[1, 0]),
            "synthetic_1-growth: nothing lies within",
        ),
        (lambda c: c["claims"][0].update(margin=-1), "margin: -1 is less than the minimum"),
        (lambda c: c["claims"].append(c["claims"][0]), "the id 'synthetic_1-growth' stands twice"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        load_claims(written(tmp_path, edit))


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text("runs: 25\nalpha: 0.05\nruns: 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="the key 'runs' stands twice"):
        load_yaml(path)
    path.write_text("runs: [25", encoding="utf-8")
    with pytest.raises(ValueError, match=r"claims\.yml: while parsing"):
        load_yaml(path)


def test_regions():
    assert claim(direction="less", threshold=0.5).region == Region(-math.inf, 0.5)
    assert claim(direction="greater", threshold=0.5).region == Region(0.5, math.inf)
    assert claim(direction="within", threshold=[0.8, 1.25]).region == Region(0.8, 1.25)


# Metrics


def test_growth_looks_at_its_split_and_orders():
    data = results(ratio=0.5)
    assert measure(data).quantity.value == pytest.approx(0.5, abs=0.02)
    assert measure(data, split="train").quantity.value == pytest.approx(1.0, abs=0.02)
    swapped = measure(data, order="random", versus="covariance")
    assert swapped.quantity.value == pytest.approx(2.0, abs=0.08)


@pytest.mark.parametrize(
    ("direction", "threshold", "region"),
    [
        ("less", 0.5, (-math.inf, -0.01)),
        ("greater", 1.1, (0.01, math.inf)),
        ("within", [0.8, 1.25], (-0.01, 0.01)),
    ],
)
@pytest.mark.parametrize("size", [0.0, -1.0, 0.2])
def test_where_nothing_grows_differences_are_held_against_what_is_negligible(
    direction, threshold, region, size
):
    """Of size 0.2 growth is 3 % of the loss: surely above 0, yet little."""
    data = results(size=size)
    measured = measure(data, direction=direction, threshold=threshold)
    assert measured.unit == "difference of growth / loss at k = 0"
    assert measured.region == region
    loss = data.loss.sel(split="test")
    growth = loss[..., 1:-1].mean("k") - loss[..., 0]
    expected = float((growth[0] - growth[1]).mean() / loss[..., 0].mean())
    assert measured.quantity.value == pytest.approx(expected)


def test_where_growth_is_large_but_uncertain_there_is_no_ratio_either():
    data = results(size=2.0)
    noise = np.random.default_rng(8).normal(size=RUNS)
    data["loss"][:, 1] = data.loss[:, 1] + 2 * noise[:, None] * SHARE
    measured = measure(data)
    assert measured.unit == "difference of growth / loss at k = 0"
    assert judge_one(data).verdict == INCONCLUSIVE


@pytest.mark.parametrize(
    ("ratio", "slower", "same"), [(0.5, SUPPORTED, NOT_SUPPORTED), (1.0, NOT_SUPPORTED, SUPPORTED)]
)
def test_slower_and_the_same(ratio, slower, same):
    data = results(ratio=ratio)
    assert judge_one(data).verdict == slower
    within = {"direction": "within", "threshold": [0.8, 1.25], "test": "TOST, paired t"}
    assert judge_one(data, **within).verdict == same


@pytest.mark.parametrize(("narrow", "wide", "value"), [(0.5, 0.9, 1.8), (0.9, 0.45, 0.5)])
def test_advantage_lost_with_width(narrow, wide, value):
    data = xr.concat(
        [results(ratio=narrow), results(1, ratio=1.0), results(2, ratio=wide)], "width"
    )
    measured = measure(data, metric="advantage_lost_with_width", direction="greater", threshold=1.1)
    low, high = measured.quantity.interval()
    assert low < value < high
    assert high / low < 1.2
    assert measured.region == Region(1.1, math.inf)


def test_advantage_lost_with_width_where_nothing_grows():
    data = xr.concat([results(ratio=0.5), results(1, ratio=0.5, size=0.0)], "width")
    measured = measure(data, metric="advantage_lost_with_width", direction="greater", threshold=1.1)
    assert measured.unit.startswith("difference of differences")
    assert measured.region == Region(0.01, math.inf)
    # The narrow net gains half of the growth, a sixth of the loss at k = 0.
    assert measured.quantity.value == pytest.approx(0.5 * (SHARE[1:-1] ** 2).mean() / 2, abs=0.01)


def test_spread():
    data = results()
    data["loss"][:, 0] = 10 + 0.5 * (data.loss[:, 1] - 10)
    measured = measure(data, metric="spread")
    assert measured.quantity.value == pytest.approx(0.25)


def test_freezable_share():
    """Growth f share^2 of a loss of 2 passes 0.1 where the share is sqrt(0.1 / f)."""
    fields = {"metric": "freezable_share", "tolerance": 0.05}
    data = results(ratio=0.5)
    alone = measure(data, **fields, versus=None)
    assert alone.quantity.value == pytest.approx(math.sqrt(0.2), abs=0.02)
    more = measure(data, **fields)
    assert more.quantity.value == pytest.approx(math.sqrt(0.2) - math.sqrt(0.1), abs=0.02)


STABILITY = {"metric": "stability", "direction": "greater", "threshold": 0.5, "splits": None}


def test_stability_of_an_order_and_against_the_start():
    data = results(stable=0.9, start=0.3)
    stable, random = (measure(data, **STABILITY, order=o, versus=None) for o in data.order.values)
    assert stable.quantity.value == pytest.approx(0.81, abs=0.05)
    assert random.quantity.value == pytest.approx(0.0, abs=0.02)
    start = measure(data, **STABILITY, versus="start_variance")
    assert start.quantity.value == pytest.approx(0.81 - 0.09, abs=0.06)
    other = measure(data, **STABILITY, versus="random")
    assert other.quantity.value == pytest.approx(stable.quantity.value, abs=0.02)


def test_stability_leaves_out_what_never_varied():
    data = results(stable=0.9)
    dead = np.random.default_rng(5).uniform(size=(RUNS, P)) < 0.3
    data["variance"] = data.variance.where(~dead, 0.0)
    noise = np.random.default_rng(6).permuted(np.tile(np.arange(1, P + 1), (RUNS, 1)), axis=1)
    data["ranks"] = data.ranks.where(~dead, xr.DataArray(noise, dims=("run", "parameter")))
    alone = measure(data, **STABILITY, versus=None)
    assert alone.quantity.value == pytest.approx(0.81, abs=0.05)


def test_stability_against_the_start_leaves_out_what_did_not_vary_there():
    data = results(stable=0.9, start=0.3)
    data["start_variance"][:, : P // 2] = 0.0
    measured = measure(data, **STABILITY, versus="start_variance")
    rest = data.isel(parameter=slice(P // 2, None))
    expected = measure(rest, **STABILITY, versus="start_variance")
    assert measured.quantity == expected.quantity


@pytest.mark.parametrize("shared_weights", [False, True])
def test_stability_matches_hidden_units_of_independent_weights_only(shared_weights):
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
    value = measure(data, **STABILITY, versus=None).quantity.value
    assert (value > 0.999) != shared_weights


def test_near_one_and_mask_correlation():
    data = results(stable=1.0)
    fields = {"splits": None, "versus": None, "direction": "greater", "threshold": 0.5}
    for metric in ("near_one", "mask_correlation"):
        assert measure(data, **fields, metric=metric).quantity.value == pytest.approx(1, abs=1e-6)
        other = measure(data, **fields, metric=metric, order="random")
        assert other.quantity.value < 0.2


@pytest.mark.parametrize("by_run", [False, True])
def test_feature_order(by_run):
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


def test_covariance_error_makes_up_for_the_known_factor():
    fields = {"metric": "covariance_error", "order": None, "versus": None, "splits": None}
    data = results(S=4)
    data["exact_variance"] = data.variance * 4 / 3
    assert measure(data, **fields).quantity.value == pytest.approx(0, abs=1e-12)
    data["exact_variance"][:, : P // 2] *= 2
    estimate, exact = data.variance.values * 4 / 3, data.exact_variance.values
    expected = np.mean([sum(abs(a - b)) / sum(b) for a, b in zip(estimate, exact, strict=True)])
    assert measure(data, **fields).quantity.value == pytest.approx(expected)
    assert expected > 0.2


def test_covariance_order_leaves_out_what_never_varied():
    fields = {"metric": "covariance_order", "order": None, "versus": None, "splits": None}
    data = results()
    assert measure(data, **fields).quantity.value == pytest.approx(1)
    data["variance"][:, :10] = 0
    assert measure(data, **fields).quantity.value == pytest.approx(1)
    data["exact_variance"] = 1 / data.exact_variance
    assert measure(data, **fields).quantity.value == pytest.approx(-1)


def test_step_time():
    rng = np.random.default_rng(0)
    seconds = (1 - SHARE / 3) * (1 + 0.01 * rng.normal(size=(RUNS, 1)))
    data = xr.Dataset({"seconds": (("run", "k"), seconds)}, {"k": K})
    fields = {"metric": "step_time", "share": 0.9, "order": None, "versus": None, "splits": None}
    row = judge_one(data, **fields, threshold=0.75)
    assert row.estimate == pytest.approx(0.7)
    assert row.verdict == SUPPORTED
    assert judge_one(data, **fields, threshold=0.65).verdict == NOT_SUPPORTED


# Judging


def test_rows_are_experiments_by_t0_by_splits():
    every = {(e, t0): results() for e in ("a", "b") for t0 in ("early", "rule")}
    each = claim(experiments=["a", "b"], t0=["early", "rule"], splits=["train", "test"])
    other = claim(id="other", levels=["new data"], experiments=["b"])
    rows = judge(ledger(each, other), every)
    assert [row.case for row in rows] == [
        f"one data set/{e}/{t0}/{split}"
        for e in ("a", "b")
        for t0 in ("early", "rule")
        for split in ("train", "test")
    ]
    assert {row.verdict for row in rows if "test" in row.case} == {SUPPORTED}
    assert {row.verdict for row in rows if "train" in row.case} == {NOT_SUPPORTED}
    (row,) = judge(ledger(each, other), every, level="new data")
    assert (row.id, row.case) == ("other", "new data/b/early/test")


def test_a_row_says_what_its_verdict_rests_on():
    row = judge_one(results(ratio=0.5))
    assert row.low < row.estimate < row.high < 0.95
    assert (row.unit, row.region) == ("ratio of growth", Region(-math.inf, 0.95))
    assert row.p == row.p_adjusted < 1e-6
    assert 0 < row.smallest_effect < 0.1


def test_more_claims_need_more_evidence():
    """A row with p between alpha / 10 and alpha is decided alone, and not among ten of its kind."""
    data = results(ratio=1.0)
    alone = judge_one(data, direction="greater", threshold=0.95)
    threshold = next(
        t
        for t in np.linspace(alone.estimate, alone.low, 200)
        if 0.01 < judge_one(data, direction="greater", threshold=t).p < 0.05
    )
    claims = [claim(id=str(i), direction="greater", threshold=threshold) for i in range(10)]
    rows = judge(ledger(*claims), {("made_up", "early"): data})
    assert judge_one(data, direction="greater", threshold=threshold).verdict == SUPPORTED
    assert {row.verdict for row in rows} == {INCONCLUSIVE}
    assert rows[0].p_adjusted == pytest.approx(10 * rows[0].p)
    assert rows[0].smallest_effect > alone.smallest_effect


@pytest.mark.parametrize("n", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_rate_of_wrong_verdicts_of_a_whole_ledger(n):
    """Claims on the boundary, both ways and on both parts of the data: any decided, in 5 %."""
    less = claim(splits=["test", "train"], threshold=1.0)
    greater = claim(id="faster", direction="greater", threshold=1.0)
    wrong = sum(
        any(row.verdict != INCONCLUSIVE for row in rows)
        for rows in (
            judge(ledger(less, greater), {("made_up", "early"): results(seed, ratio=1.0)})
            for seed in range(n)
        )
    )
    assert wrong <= stats.binom.ppf(0.9999, n, 0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "beauty"}, "slower: unknown metric 'beauty'; known are growth"),
        ({"versus": None}, "slower: the metric growth needs the field 'versus'"),
        ({"tolerance": 0.1}, "slower: the metric growth has no use for the field 'tolerance'"),
        ({"test": "z"}, "slower: the test is 'paired t', not 'z'"),
        ({"experiments": ["mnist"]}, "slower: there are no results of mnist at t0 'early'"),
        ({"order": "alphabetic"}, "slower: made_up at t0 'early' has no order 'alphabetic'"),
        ({"versus": "size"}, "slower: made_up at t0 'early' has no order 'size'"),
    ],
)
def test_claims_and_results_must_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        judge_one(results(), **changes)


def test_fewer_runs_than_agreed_make_no_verdict():
    with pytest.raises(ValueError, match="made_up at t0 'early' has 5 runs of 25"):
        judge_one(results().isel(run=slice(5)))


# What was committed


@pytest.fixture
def committed(tmp_path):
    path = tmp_path / "verdicts.yml"
    commit([judge_one(results(ratio=0.5))], path)
    return path


def test_what_was_committed_can_be_read(committed):
    (entry,) = load_yaml(committed)["slower"].values()
    row = judge_one(results(ratio=0.5))
    assert entry == {
        "verdict": SUPPORTED,
        "estimate": pytest.approx(row.estimate, rel=1e-3),
        "unit": "ratio of growth",
    }


@pytest.mark.parametrize(
    ("moved", "verdict", "unit", "drifts"),
    [
        (0.0, SUPPORTED, "ratio of growth", False),
        (0.04, INCONCLUSIVE, "ratio of growth", False),
        (0.06, INCONCLUSIVE, "ratio of growth", True),
        (-0.06, NOT_SUPPORTED, "ratio of growth", True),
        (0.4, SUPPORTED, "ratio of growth", False),
        (0.0, INCONCLUSIVE, "difference of growth / loss at k = 0", True),
    ],
)
def test_drift_is_a_changed_verdict_beyond_the_margin(committed, moved, verdict, unit, drifts):
    row = judge_one(results(ratio=0.5))
    row = dataclasses.replace(row, estimate=row.estimate + moved, verdict=verdict, unit=unit)
    lines = drift(ledger(claim()), [row], committed)
    assert bool(lines) == drifts
    if drifts:
        assert f"{verdict} at" in lines[0]
        assert "committed is supported at 0." in lines[0]


def test_what_is_not_committed_and_what_is_no_longer_judged_drifts(committed):
    row = judge_one(results(ratio=0.5))
    other = dataclasses.replace(row, id="other")
    lines = drift(ledger(claim(), claim(id="other")), [other], committed)
    assert lines == [
        "other, one data set/made_up/early/test: supported, and nothing is committed",
        "slower, one data set/made_up/early/test: committed, and not judged",
    ]
