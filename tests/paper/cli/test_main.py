"""``parameter-ordering compare`` and ``accept``, and how a chapter is named.

The verbs on chapters are tested with the book.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from parameter_ordering.paper.book.settings import BookError
from parameter_ordering.paper.cli.main import _docname, main
from parameter_ordering.paper.evidence import ledger
from parameter_ordering.paper.evidence.claims import Region
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.evidence.verdict import SUPPORTED
from parameter_ordering.paper.experiments import book_runs

CLAIMS = Path(__file__).parents[3] / "chapters" / "claims.yml"


@pytest.fixture
def book(tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: chapters/index\n")
    (tmp_path / "chapters" / "index.md").write_text("# A book\n")
    (tmp_path / "chapters" / "parameters.yml").write_text("smoke: {}\n")
    shutil.copy(CLAIMS, tmp_path / "chapters")
    return tmp_path


def test_accept_then_compare(asked, book, monkeypatch, capsys):
    def judge(claims, results, level="one data set"):
        return [Row("c", level, "units", Region(0, 2), SUPPORTED, estimate=1.0, low=0.5, high=1.5)]

    monkeypatch.setattr(ledger, "judge", judge)
    where = ["--book", str(book)]
    assert main(["compare", *where]) == 1
    assert "run make accept" in capsys.readouterr().err
    assert main(["accept", *where]) == 0
    verdicts = (book / "chapters" / "verdicts.yml").read_text()
    for level in ("one data set", "new data"):
        assert f"{level}:\n    verdict: {SUPPORTED}" in verdicts
    assert main(["compare", *where]) == 0
    assert "no number moved" in capsys.readouterr().out
    path = book / "chapters" / "reference.csv"
    table = pd.read_csv(path)
    table.loc[3, "mean"] += 2 * table.loc[3, "standard_error"]
    table.to_csv(path, index=False)
    assert main(["compare", *where]) == 1
    case, order, split, k = table.loc[3, ["case", "order", "split", "k"]]
    assert f"{case}: order {order}, {split} loss at k = {k:g} is" in capsys.readouterr().err


def test_verdicts_are_not_computed(book, monkeypatch, capsys):
    monkeypatch.setattr(book_runs, "stored", lambda folder: {})
    assert main(["accept", "--book", str(book)]) == 1
    assert "there is no result" in capsys.readouterr().err


def test_nothing_is_accepted_that_is_not_the_papers(book, capsys):
    where = ["--book", str(book)]
    assert main(["accept", *where]) == 1
    assert "parameter-ordering execute chapters/experiments/synthetic_1" in capsys.readouterr().err
    assert main(["accept", *where, "--profile", "smoke"]) == 1
    assert main(["compare", *where, "--profile", "smoke"]) == 0
    assert not list((book / "chapters").glob("*.csv"))
    assert not (book / "chapters" / "verdicts.yml").exists()


def test_a_chapter_is_named_by_its_last_part_or_in_full():
    settings = SimpleNamespace(notebooks=["a/order", "a/reorder", "b/same", "c/same"])
    for name in ("order", "a/order", "a/order.ipynb"):
        assert _docname(settings, name) == "a/order"
    for name in ("rder", "same"):
        with pytest.raises(BookError, match=f"there is no one chapter '{name}'"):
            _docname(settings, name)
