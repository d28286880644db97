"""Verdicts follow the rule among all rows of the ledger, and drift is told from noise."""

import dataclasses
import math

import numpy as np
import pytest

from parameter_ordering.paper.evidence.claims import Region
from parameter_ordering.paper.evidence.ledger import commit, drift, judge
from parameter_ordering.paper.evidence.verdict import (
    CANNOT,
    INCONCLUSIVE,
    NOT_SUPPORTED,
    SUPPORTED,
)
from parameter_ordering.paper.store.strict_yaml import load_yaml


def test_rows_are_experiments_by_t0_by_splits(claim, ledger, results):
    every = {(e, t0): results() for e in ("a", "b") for t0 in ("early", "late")}
    each = claim(experiments=["a", "b"], t0=["early", "late"], splits=["train", "test"])
    other = claim(id="other", levels=["new data"], experiments=["b"])
    rows = judge(ledger(each, other), every)
    assert [row.case for row in rows] == [
        f"one data set/{e}/{t0}/{split}"
        for e in ("a", "b")
        for t0 in ("early", "late")
        for split in ("train", "test")
    ]
    assert {row.verdict for row in rows if "test" in row.case} == {SUPPORTED}
    assert {row.verdict for row in rows if "train" in row.case} == {NOT_SUPPORTED}
    (row,) = judge(ledger(each, other), every, level="new data")
    assert (row.id, row.case) == ("other", "new data/b/early/test")


def test_a_row_says_what_its_verdict_rests_on(results, judge_one):
    row = judge_one(results(ratio=0.5))
    assert row.low < row.estimate < row.high < 0.95
    assert (row.unit, row.region) == ("ratio of growth", Region(-math.inf, 0.95))
    assert row.p == row.p_adjusted < 1e-6
    assert 0 < row.smallest_effect < 0.1


def test_more_claims_need_more_evidence(claim, ledger, results, judge_one):
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
def test_the_rate_of_wrong_verdicts_of_a_whole_ledger(n, claim, ledger, results, plausible):
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
    assert plausible(wrong, n, 0, 0.05)


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
def test_claims_and_results_must_fit(changes, message, results, judge_one):
    with pytest.raises(ValueError, match=message):
        judge_one(results(), **changes)


def test_fewer_runs_than_agreed_make_no_verdict(results, judge_one):
    with pytest.raises(ValueError, match="made_up at t0 'early' has 5 runs of 25"):
        judge_one(results().isel(run=slice(5)))


@pytest.fixture
def committed(tmp_path, results, judge_one):
    path = tmp_path / "verdicts.yml"
    commit([judge_one(results(ratio=0.5))], path)
    return path


def test_what_was_committed_can_be_read(committed, results, judge_one):
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
        (0.0, INCONCLUSIVE, "share of p", True),
    ],
)
def test_drift_is_a_changed_verdict_beyond_the_margin(
    committed, moved, verdict, unit, drifts, claim, ledger, results, judge_one
):
    row = judge_one(results(ratio=0.5))
    row = dataclasses.replace(row, estimate=row.estimate + moved, verdict=verdict, unit=unit)
    lines = drift(ledger(claim()), [row], committed)
    assert bool(lines) == drifts
    if drifts:
        assert f"{verdict} at" in lines[0]
        assert "committed is supported at 0." in lines[0]


def test_what_cannot_be_judged_says_why_and_takes_no_part_in_the_correction(claim, ledger, results):
    every = {("made_up", "early"): results(), ("flat", "early"): results(size=0.0)}
    growing, flat = claim(), claim(id="flat", experiments=["flat"])
    alone = judge(ledger(growing), every)
    assert judge(ledger(flat), every)[0].verdict == CANNOT
    both = judge(ledger(growing, flat), every)
    assert both[0] == alone[0]
    assert both[1].why == "there is no growth to compare with"
    assert math.isnan(both[1].estimate)


def test_what_can_no_longer_be_judged_drifts(committed, claim, ledger, results, tmp_path):
    (row,) = judge(ledger(claim()), {("made_up", "early"): results(size=0.0)})
    (line,) = drift(ledger(claim()), [row], committed)
    assert line.startswith("slower, one data set/made_up/early/test: cannot be judged")
    commit([row], tmp_path / "flat.yml")
    assert drift(ledger(claim()), [row], tmp_path / "flat.yml") == []


def test_what_is_not_committed_and_what_is_no_longer_judged_drifts(
    committed, claim, ledger, results, judge_one
):
    row = judge_one(results(ratio=0.5))
    other = dataclasses.replace(row, id="other")
    lines = drift(ledger(claim(), claim(id="other")), [other], committed)
    assert lines == [
        "other, one data set/made_up/early/test: supported, and nothing is committed",
        "slower, one data set/made_up/early/test: committed, and not judged",
    ]
