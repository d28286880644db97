"""The ledger as files to download, on made-up rows."""

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


def test_a_download_holds_the_table(ledger):
    link = claim_tables.download(claim_tables.rules(ledger), "rules.csv", "Rules").data
    content = base64.b64decode(link.partition("base64,")[2].partition('"')[0]).decode()
    head, line = content.splitlines()
    assert head.startswith("claim,kind,words")
    assert "proposed against random" in line
    assert "below 0.95" in line


def test_cases_say_what_each_verdict_rests_on():
    frame = claim_tables.cases([row(estimate=0.4, low=0.3, high=0.5), row("cannot be judged")])
    assert frame.case.tolist() == ["one data set/mnist/late/test"] * 2
    assert frame.region.tolist() == ["below 0.95"] * 2
    assert frame.estimate.isna().tolist() == [False, True]
