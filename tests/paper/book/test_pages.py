"""What a reader gets: folds, the last touch to the HTML, the head of a page, the download."""

import json

import nbformat
import pytest
from bs4 import BeautifulSoup

from parameter_ordering.paper.book import head
from parameter_ordering.paper.book.chapters import Chapter
from parameter_ordering.paper.book.download import download
from parameter_ordering.paper.book.polish import polished
from parameter_ordering.paper.book.settings import Settings
from parameter_ordering.paper.book.site import address

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt"></svg>'


def soup(html):
    return BeautifulSoup(html, "html.parser")


@pytest.fixture
def files(tmp_path):
    for name in ("wide.svg", "wide-narrow.svg", "alone.svg"):
        (tmp_path / name).write_text(SVG)

    def find(name):
        return tmp_path / name if (tmp_path / name).is_file() else None

    return find


def test_a_figure_says_its_size_and_opens_alone(files):
    page = BeautifulSoup(
        polished('<img alt="a" src="../_images/alone.svg" />', files), "html.parser"
    )
    assert (page.img["width"], page.img["height"]) == ("96", "48")
    assert page.a["href"] == page.img["src"] == "../_images/alone.svg"
    assert page.img["alt"] == "a"
    assert page.picture is None


def test_a_phone_gets_the_narrow_figure(files):
    page = BeautifulSoup(
        polished('<img alt="a" src="../_images/wide.svg" />', files), "html.parser"
    )
    assert page.source["srcset"] == "../_images/wide-narrow.svg"
    assert page.source["media"] == "(max-width: 600px)"


def test_other_images_stay_as_they_are(files):
    for image in ('<img alt="a" src="gone.svg"/>', '<img alt="a" src="a.png"/>'):
        assert polished(image, files) == image


def test_an_empty_corner_is_no_header(files):
    html = polished('<table><tr><th class="blank">&nbsp;</th><th>a</th></tr></table>', files)
    assert [cell.name for cell in BeautifulSoup(html, "html.parser").select("tr > *")] == [
        "td",
        "th",
    ]


def test_a_header_that_is_a_formula_has_a_name(files):
    html = r'<table><tr><th class="head"><p><span class="math">\(n\)</span></p></th></tr></table>'
    header = soup(polished(html, files)).th
    assert header["aria-label"] == "n"
    assert header.text == r"\(n\)"


def test_references_carry_no_role_that_is_deprecated(files):
    html = (
        '<div role="list" class="citation-list"><div class="citation" role="doc-biblioentry">'
        '<a role="doc-backlink" href="#id1">1</a></div></div><ul role="list"></ul>'
    )
    page = soup(polished(html, files))
    assert [tag.name for tag in page.find_all(role=True)] == ["ul"]
    assert page.a.attrs == {"href": "#id1"}
    assert page.find(class_="citation")


def test_the_head_is_read_by_machines():
    text = head.tags("Book", "A <page>", "About it.", "2026-01-02", "1", "https://x.org/", "a.html")
    page = soup(text)
    content = {m.get("name") or m["property"]: m["content"] for m in page.select("meta")}
    assert content["description"] == content["og:description"] == "About it."
    assert content["citation_publication_date"] == "2026/01/02"
    assert content["og:url"] == content["citation_public_url"] == "https://x.org/a.html"
    known = json.loads(page.script.string)
    assert known["headline"] == "A <page>"
    assert known["isBasedOn"]["name"] == head.PAPER["title"]


def test_without_an_address_nothing_names_one():
    text = head.tags("Book", "Page", "About it.", "2026-01-02", "1", "", "a.html")
    assert "og:url" not in text
    assert '"url"' not in text


@pytest.mark.parametrize("elsewhere", ["", "https://gitlab.com/a/b", "https://github.com/a"])
def test_only_github_publishes_pages(elsewhere):
    assert address(elsewhere) == ""


def test_a_download_carries_values_and_figures(book):
    def cell(name, value):
        output = nbformat.v4.new_output(
            "display_data",
            {"application/papermill.record/text/plain": repr(value), "image/svg+xml": SVG},
            metadata={"scrapbook": {"name": name}, "image/svg+xml": {"csv": "1", "alt": "a"}},
        )
        return nbformat.v4.new_code_cell("x = 1", outputs=[output])

    book.write_notebook("two", ["x = 1"])
    chapter = Chapter(Settings(book.root), "chapters/two")
    text = "Loss {glue:text}`loss:.2f` in {glue:text}`one.ipynb::runs:d` {doc}`runs <one>`"
    chapter.notebook.cells.insert(0, nbformat.v4.new_markdown_cell(text))
    executed = {"chapters/two": [cell("loss", 0.126)], "chapters/one": [cell("runs", 25)]}
    executed = {n: nbformat.v4.new_notebook(cells=cells) for n, cells in executed.items()}
    notebook = download(chapter, executed, "https://github.com/a/b")
    assert "git+https://github.com/a/b" in notebook.cells[0].source
    assert notebook.cells[1].source == "Loss 0.13 in 25 *runs*"
    output = notebook.cells[-1].outputs[0]
    assert output.data["image/svg+xml"] == SVG
    assert "csv" not in output.metadata["image/svg+xml"]
    nbformat.validate(notebook)
