"""The ledger's picture, strips and cases: every row is there, on its side, and told in words."""

import numpy as np
import pytest
from bs4 import BeautifulSoup

from parameter_ordering.paper.evidence.claims import Region, load_claims
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.exhibits import ledger_picture
from parameter_ordering.paper.store.strict_yaml import load_yaml

LESS, MORE, WITHIN = Region(-np.inf, 0.95), Region(0.5, np.inf), Region(-0.05, 0.05)


@pytest.fixture(scope="module")
def ledger(request):
    return load_claims(request.config.rootpath / "chapters" / "claims.yml")


def row(name="mnist-growth", case="one data set/mnist/early/test", region=LESS, **other):
    values = {"estimate": 0.3, "low": 0.2, "high": 0.4, "verdict": "supported"} | other
    return Row(name, case, unit="ratio", region=region, p=0.01, p_adjusted=0.02,
               smallest_effect=0.1, **values)  # fmt: skip


def place(html, kind):
    style = BeautifulSoup(html, "html.parser").select_one(f".{kind}")["style"]
    return float(style.partition("left:")[2].partition("%")[0])


@pytest.mark.parametrize(
    ("region", "inside", "outside"),
    [(LESS, 0.2, 1.4), (MORE, 0.9, 0.1), (WITHIN, 0.01, -0.2)],
)
def test_what_is_claimed_lies_to_the_right(ledger, region, inside, outside):
    for estimate, right in ((inside, True), (outside, False)):
        ends = {"low": estimate - 0.001, "high": estimate + 0.001}
        found = ledger_picture.strips(ledger, [row(region=region, estimate=estimate, **ends)])
        assert (place(found.html, "dot") > place(found.html, "region")) == right


def test_every_claim_and_case_has_a_strip(ledger):
    rows = [row(), row(case="new data/mnist/late/test"), row(case="one data set/mnist/early/train")]
    page = BeautifulSoup(ledger_picture.strips(ledger, rows).html, "html.parser")
    assert [item["id"] for item in page.select("ol > li")] == [each.id for each in ledger.claims]
    cases = page.select("#mnist-growth .case")
    assert [case.select_one(".of").text for case in cases] == [
        "MNIST, early",
        "MNIST, late, new data",
    ]
    assert all(len(case.select_one("[role=img]")["aria-label"]) > 40 for case in cases)
    assert page.select_one("#mnist-growth a")["href"] == "experiments/mnist.html#figure-7"


@pytest.mark.parametrize(
    "verdict", ["supported", "not supported", "inconclusive", "cannot be judged"]
)
def test_a_verdict_is_a_mark_a_colour_and_a_word(ledger, verdict):
    page = BeautifulSoup(ledger_picture.strips(ledger, [row(verdict=verdict)]).html, "html.parser")
    told = page.select_one(".case .verdict")
    assert told.text.endswith(verdict)
    assert len(told.b.text) == 1
    assert len(told["class"]) == 2


def test_a_cell_of_the_picture_has_the_verdicts_of_a_data_set():
    rows = [
        row(),
        row(case="one data set/mnist/late/test", verdict="not supported"),
        row(case="new data/mnist/early/test", verdict="inconclusive"),
        row(case="one data set/mnist/early/train", verdict="not supported"),
        row("boston_housing-growth", "one data set/boston_housing_width/late"),
    ]
    names = ["mnist-growth", "boston_housing-growth"]
    groups = ledger_picture.grouped(rows, {"Claims": {"It grows less.": names}})
    page = BeautifulSoup(ledger_picture.picture(groups).html, "html.parser")
    assert [head.text for head in page.select("thead th")] == ["MNIST", "Boston Housing"]
    assert [cell.text for cell in page.select("tbody td")] == ["● ✕ | ◐ ·", "· ●"]
    told = [mark["aria-label"] for mark in page.select("td b")]
    assert told == ["early: supported", "late: not supported", "early: inconclusive",
                    "late: supported"]  # fmt: skip
    assert page.select_one("tbody a")["href"] == "#mnist-growth"


def test_the_picture_writes_estimates():
    rows = [row(), row(case="one data set/mnist/late/test", verdict="cannot be judged")]
    groups = {"Claims": {"It grows less.": rows}}
    page = BeautifulSoup(ledger_picture.picture(groups, "a.html", numbers=True).html, "html.parser")
    assert [line.text for line in page.select("td div")] == ["● 0.30 0.20 to 0.40", "–"]
    assert page.select_one("tbody a")["href"] == "a.html#mnist-growth"


def named(groups):
    return [name for lines in groups.values() for names in lines.values() for name in names]


def test_the_picture_of_the_book_has_every_claim_once(ledger, request):
    cards = load_yaml(request.config.rootpath / "chapters" / "cards.yml")
    names = named(cards["ledger"])
    assert sorted(names) == sorted(claim.id for claim in ledger.claims)
    said = [
        name for lines in cards["conclusion"].values() for ids in lines.values() for name in ids
    ]
    assert {*said} <= {*names}


def test_the_table_has_all_cases_and_sorts_by_numbers(ledger):
    rows = [row(estimate=-0.5, low=-1.0, high=0.0), row(case="new data/mnist/rule")]
    page = BeautifulSoup(ledger_picture.cases(rows).html, "html.parser")
    lines = page.select("tbody tr")
    assert len(lines) == 2
    assert lines[0].select("td")[5].text == "−0.5"
    assert float(lines[0].select("td")[5]["data-by"]) == -0.5
    assert {len(line.select("td")) for line in lines} == {len(page.select("thead th"))}
