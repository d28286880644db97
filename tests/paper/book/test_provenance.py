"""The fold under a figure: which results it shows, and what it says of them and of the drawing."""

import json

import pytest

from parameter_ordering.paper.book import provenance
from parameter_ordering.paper.book.chapters import Chapter
from parameter_ordering.paper.book.provenance import folded
from parameter_ordering.paper.book.settings import Settings

CELLS = [
    "from parameter_ordering.paper.store.results import results",
    "early = results(experiment)",
    "late = results(experiment.replace(t0=9))\ncurve = results(experiment, 'learning_curve')",
    "%matplotlib inline\ndraw(late)",
    "part = early - curve\nfirst, second = (late[i] for i in range(2))",
]
USES = ["a-early.nc", "a-late.nc", "a-curve.nc"]


@pytest.fixture
def chapter(book):
    book.write_notebook("two", CELLS)
    results = book.root / "_build/results"
    results.mkdir(parents=True)
    for name in USES:
        settings = {"runs": 25, "seed": 7, "orders": ["covariance", "random"]}
        note = {
            "inputs": {"method": "A.run", "settings": settings, "data": "5a17"},
            "attributes": {"data": {"name": "<Homes: 3 + 2 objects, n = 13>"}},
            "origin": origin("long ago"),
            "seconds": 12.34,
            "bytes": 1_234_567,
        }
        (results / name).with_suffix(".json").write_text(json.dumps(note))
    return Chapter(Settings(book.root), "chapters/two")


def origin(date):
    return {"date": date, "version": "1", "commit": "c0", "machine": "M", "python": "3"}


def record(uses):
    return {
        "profile": "paper",
        "parameters": {},
        "inputs": {"packages": {"numpy": "2.0"}, "data": {"data/numbers.csv": "c5"}},
        "uses": uses,
        "origin": origin("today"),
        "seconds": 3.21,
    }


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("draw(late)", ["a-late.nc"]),
        ("figure = draw(early, late.loss)", ["a-early.nc", "a-late.nc"]),
        ("draw(curve)", ["a-curve.nc"]),
        ("draw(table)", USES),  # made from no one knows which
        ("draw(part)", ["a-early.nc", "a-curve.nc"]),
        ("draw(first)", ["a-late.nc"]),
    ],
)
def test_the_results_that_the_cell_reads(chapter, code, shown):
    text = folded(chapter, record(USES), code)
    assert [name for name in USES if name in text] == shown


def test_all_results_where_calls_and_uses_do_not_match(chapter):
    uses = [USES[0], USES[0], *USES[1:]]  # one of the calls stands in a loop
    text = folded(chapter, record(uses), "draw(late)")
    assert all(text.count(f"{name} <") == 1 for name in USES)


def test_all_results_where_a_variable_is_set_twice(chapter):
    cell = chapter.notebook.cells[2]
    cell.source = cell.source.replace("curve =", "late =")
    text = folded(chapter, record(USES), "draw(late)")
    assert all(text.count(f"{name} <") == 1 for name in USES)


def test_many_results_are_told_in_a_line_each(chapter, monkeypatch):
    monkeypatch.setattr(provenance, "_MANY", 2)
    text = folded(chapter, record(USES), "draw(table)")
    assert text.count("computed in 12.3 s") == 3
    assert "Settings:" not in text


def test_all_that_a_reader_needs(chapter):
    text = folded(chapter, record(USES), "draw(late)")
    for fact in (
        "today by version 1, commit `c0`, on M, Python 3, in 3.2 s",
        "numpy 2.0",
        "Profile paper.",
        "parameter-ordering execute --force chapters/two",
        "{download}`a-late.nc </_build/results/a-late.nc>` (NetCDF, 1.2 MB)",
        "long ago by version 1, commit `c0`, on M, Python 3, in 12.3 s",
        "Homes: 3 + 2 objects, n = 13; SHA-256 of the values `5a17`",
        "runs = 25, seed = 7, orders = covariance random",
    ):
        assert fact in text


def test_files_where_there_are_no_results(chapter):
    text = folded(chapter, record([]), "draw()")
    assert "File `data/numbers.csv`: 0.0 kB, SHA-256 `c5`" in text
