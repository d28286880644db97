"""The file of claims: the book's own is in order, a bad one is refused with the place."""

import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from parameter_ordering.paper.evidence import claims as claims_module
from parameter_ordering.paper.evidence.claims import Claim, Claims, Region, load_claims
from parameter_ordering.paper.evidence.ledger import judge
from parameter_ordering.paper.store.strict_yaml import load_yaml

BOOK = Path(__file__).parents[3] / "chapters" / "claims.yml"


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
    with pytest.raises(ValueError, match='found duplicate key "runs"'):
        load_yaml(path)
    path.write_text("runs: [25", encoding="utf-8")
    with pytest.raises(ValueError, match=r"claims\.yml: while parsing"):
        load_yaml(path)


def test_regions(claim):
    assert claim(direction="less", threshold=0.5).region == Region(-math.inf, 0.5)
    assert claim(direction="greater", threshold=0.5).region == Region(0.5, math.inf)
    assert claim(direction="within", threshold=[0.8, 1.25]).region == Region(0.8, 1.25)
