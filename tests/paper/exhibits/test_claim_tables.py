"""The tables of the ledger, on made-up rows."""

import base64
from math import inf

import pytest

from parameter_ordering.paper.evidence.claims import Claim, Claims, Region
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.exhibits import claim_tables


def row(verdict="supported", case="one data set/mnist/late/test", **numbers):
    return Row("a", case, "ratio of growth", Region(-inf, 0.95), verdict, **numbers)


@pytest.fixture
def ledger():
    claim = Claim(
        id="a", kind="claim", claim="It grows.", where="figure 1", experiments=["mnist"],
        t0=["early"], levels=["one data set"], metric="growth", direction="less", threshold=0.95,
        why="It shows.", test="paired t", margin=0.05, order="covariance", versus="random",
    )  # fmt: skip
    return Claims(runs=25, alpha=0.05, claims=[claim])


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (row(estimate=0.4, low=0.339, high=2.0), "supported (0.40, 0.34 to 2.0)"),
        (row(estimate=47.7, low=22.4, high=101.6), "supported (48, 22 to 102)"),
        (row("cannot be judged"), "cannot be judged"),
    ],
)
def test_an_outcome_in_prose(found, text):
    assert dict(claim_tables.outcomes([found])) == {"a one data set mnist late test": text}


def test_a_row_of_verdicts_is_a_data_set_with_test_before_train(ledger):
    rows = [
        row("inconclusive", "one data set/mnist/early/train", estimate=0.9),
        row("supported", "one data set/mnist/early/test", estimate=0.4),
        row("cannot be judged", "new data/mnist/late/test"),
        row("supported", "one data set/other/early", estimate=0.3),
    ]
    table = claim_tables.verdicts(ledger, rows, "claim").data
    assert table.index.tolist() == [("It grows.", "mnist"), ("It grows.", "other")]
    mnist, other = table.to_dict("records")
    assert mnist["one data set, early"] == "supported (0.40); train: inconclusive (0.90)"
    assert mnist["new data, late"] == "cannot be judged"
    assert other == {"one data set, early": "supported (0.30)", "new data, late": ""}


def test_a_download_holds_the_table(ledger):
    link = claim_tables.download(claim_tables.rules(ledger), "rules.csv", "Rules").data
    content = base64.b64decode(link.partition("base64,")[2].partition('"')[0]).decode()
    head, line = content.splitlines()
    assert head.startswith("claim,kind,words")
    assert "proposed against random" in line
    assert "below 0.95" in line


def test_cases_say_what_each_verdict_rests_on():
    frame = claim_tables.cases([row(estimate=0.4, low=0.3, high=0.5), row("cannot be judged")])
    assert frame.case.tolist() == ["one data set, mnist, late, test"] * 2
    assert frame.claimed.tolist() == ["below 0.95"] * 2
    assert frame.estimate.isna().tolist() == [False, True]
