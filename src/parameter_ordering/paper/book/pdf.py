"""The book as one PDF: ``python -m parameter_ordering.paper.book.pdf``.

All pages become one, in the order of the table of contents, with links between them as links inside
it. The browser prints that twice: the first time to learn on which page a chapter begins. Folds,
buttons and what needs a script are left out.
"""

import posixpath
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bs4 import BeautifulSoup
from pypdf import PdfReader

from parameter_ordering.paper.book.browser import browser, show
from parameter_ordering.paper.book.settings import Settings

_LEFT_OUT = ".headerlink, details.sd-dropdown, script, .rerun, .filters, .copybtn, #searchbox"
_NUMBER = (
    '<div style="font: 8px sans-serif; width: 100%; text-align: center; color: #555">'
    '<span class="pageNumber"></span></div>'
)
_STYLE = """
@page { size: A4; }
body { font-size: 10.5pt; }
main { margin: 0 auto; max-width: none; }
article { break-before: page; }
h1, h2, h3 { break-after: avoid; break-inside: avoid; }
figure, img, pre, tr, .cards, .case { break-inside: avoid; }
img { max-width: 100%; height: auto; }
a { text-decoration: none; }
.scrolls { overflow: visible; }
table { font-size: 8pt !important; }
.cases { font-size: 5.5pt !important; }
pre { white-space: pre-wrap !important; font-size: 8pt !important; }
#contents { break-before: page; }
#contents li { list-style: none; }
#contents .page { float: right; }
#cover { padding-top: 30vh; text-align: center; }
"""


def as_one(settings: Settings, html: Path, pages: Mapping[str, int]) -> str:
    """All pages of the book as one page of HTML.

    Args:
        settings: of the book.
        html: the folder of the pages.
        pages: number of the page on which each chapter begins, as far as it is known.
    """
    articles, titles, heads = [], {}, ""
    for docname in settings.docnames:
        page = BeautifulSoup((html / f"{docname}.html").read_text(encoding="utf-8"), "html.parser")
        article: Any = page.select_one("article.bd-article")
        _tidy(article, docname, settings)
        heading = article.find("h1")
        titles[docname] = heading.get_text(" ", strip=True) if heading else docname
        article["id"] = _anchor(docname)
        articles.append(str(article))
        heads = heads or _head(page, docname)
    lines = "".join(
        f'<li><a href="#{_anchor(name)}">{title}</a>'
        f'<span class="page">{pages.get(name, "")}</span></li>'
        for name, title in titles.items()
    )
    book = titles[settings.docnames[0]]
    return (
        f'<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f"<title>{book}</title>{heads}<style>{_STYLE}</style></head><body>"
        f'<main class="bd-content"><section id="cover"><h1>{book}</h1>'
        "<p>A reproducible edition, as one file</p></section>"
        f'<nav id="contents"><h1>Contents</h1><ol>{lines}</ol></nav>{"".join(articles)}</main>'
        f"</body></html>"
    )


def make(settings: Settings, html: Path, target: Path) -> int:
    """Print the book; gives the number of its pages."""
    page = html / "_book.html"
    numbers: dict[str, int] = {}
    try:
        for _ in range(2):
            page.write_text(as_one(settings, html, numbers), encoding="utf-8")
            _print(page, target)
            numbers = _starts(settings, target)
    finally:
        page.unlink(missing_ok=True)
    return len(PdfReader(target).pages)


def _print(page: Path, target: Path) -> None:
    with browser() as opened:
        context = opened.new_context(color_scheme="light")
        tab = show(context, page)
        tab.pdf(
            path=str(target),
            format="A4",
            margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=_NUMBER,
            outline=True,
            tagged=True,
            print_background=True,
        )


def _starts(settings: Settings, pdf: Path) -> dict[str, int]:
    """The page on which each chapter begins, from the links of the contents."""
    reader = PdfReader(pdf)
    places = {name.lstrip("/"): each for name, each in reader.named_destinations.items()}
    starts = {}
    for docname in settings.docnames:
        place = places.get(_anchor(docname))
        number = reader.get_destination_page_number(place) if place else None
        if number is not None:
            starts[docname] = number + 1
    return starts


def _tidy(article: Any, docname: str, settings: Settings) -> None:
    """Leave out what paper has no use for, and make links and names those of one page."""
    for still in article.select("noscript > figure"):
        still.find_parent("div").replace_with(still)
    for each in article.select(_LEFT_OUT):
        each.decompose()
    for each in article.select("details.fold"):
        each["open"] = ""
    for each in article.select("picture"):
        each.replace_with(each.img)
    for each in article.select("a.enlarge"):
        each.unwrap()
    for each in article.select("[id]"):
        each["id"] = f"{_anchor(docname)}-{each['id']}"
    for image in article.select("img"):
        image.attrs.pop("loading", None)
        if not image["src"].startswith("data:"):
            image["src"] = _from_root(docname, image["src"])
    for link in article.select("a[href]"):
        parts = urlsplit(link["href"])
        if parts.scheme or parts.netloc:
            continue
        path = _from_root(docname, parts.path).removesuffix(".html") if parts.path else docname
        if path in settings.docnames:
            link["href"] = f"#{_anchor(path)}" + (f"-{parts.fragment}" if parts.fragment else "")
        else:
            link.unwrap()


def _head(page: BeautifulSoup, docname: str) -> str:
    """Style sheets and the scripts of formulas, as the one page names them."""
    found = []
    tags: Any = page.select("link[rel=stylesheet], script[src]")
    for tag in tags:
        key = "href" if tag.name == "link" else "src"
        if tag.name == "link" or re.search(r"katex|auto-render", tag[key]):
            tag[key] = _from_root(docname, tag[key])
            found.append(str(tag))
    return "".join(found)


def _from_root(docname: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(docname), link))


def _anchor(docname: str) -> str:
    return docname.replace("/", "-")


def main() -> None:
    """Make ``_build/book.pdf``."""
    settings = Settings(Path.cwd())
    target = settings.build / "book.pdf"
    pages = make(settings, settings.build / "html", target)
    print(f"{target}: {pages} pages, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(str(error))
