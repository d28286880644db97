"""Looks at what was built: every page and figure is there, whole and without an error."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, SoupStrainer

from parameter_ordering.paper.book.chapters import Chapter, read
from parameter_ordering.paper.book.settings import PAPER, Settings

_OF_SPHINX = {"genindex", "index", "py-modindex", "search"}
_ERRORS = ("output traceback", "papermill-error-cell")
_SMALL = "small runs that test the build"
_LOOKED_AT = SoupStrainer(["a", "figure", "img", "link", "script"])


def banner(profile: str) -> str:
    """What stands at the top of each page that does not show the paper's results."""
    return f"Built with profile <b>{profile}</b>: {_SMALL}. Nothing here is a result of the paper."


def problems(settings: Settings, html: Path) -> Iterator[str]:
    """What is wrong with the pages in ``html``, a line each.

    Args:
        settings: what the book should hold, and the profile it should have been built with.
        html: the folder of the pages.
    """
    built = {file.relative_to(html).with_suffix("").as_posix() for file in html.rglob("*.html")}
    built = {name for name in built if not name.startswith("_")}
    for name in sorted(built - {*settings.docnames} - _OF_SPHINX):
        yield f"{name}.html is no page of _toc.yml"
    for name in settings.docnames:
        if name in built:
            yield from _page(settings, html, name)
        else:
            yield f"{name}.html is missing"


def _page(settings: Settings, html: Path, name: str) -> Iterator[str]:
    text = (html / f"{name}.html").read_text(encoding="utf-8")
    if not text.rstrip().endswith("</html>"):
        yield f"{name}.html is cut off"
    for sign in _ERRORS:
        if sign in text:
            yield f"{name}.html shows an error"
    small = settings.profile != PAPER
    if (_SMALL in text) != small:
        yield f"{name}.html was built with {'the paper' if small else 'another'} profile"
    page = BeautifulSoup(text, "html.parser", parse_only=_LOOKED_AT)
    for link in _local_links(page):
        if not (html / name).parent.joinpath(link).exists():
            yield f"{name}.html points to {link}, which is not there"
    if name in settings.notebooks:
        drawn = {figure["id"] for figure in page.select("figure[id]:has(img, svg)")}
        for figure in figures(Chapter(settings, name)):
            if figure not in drawn:
                yield f"{name}.html lacks the figure {figure}"


def _local_links(page: BeautifulSoup) -> set[str]:
    links = (tag.get("href") or tag.get("src") for tag in page.select("[href], [src]"))
    parts = [urlsplit(str(link)) for link in links]
    return {unquote(each.path) for each in parts if each.path and not (each.scheme or each.netloc)}


def figures(chapter: Chapter) -> list[str]:
    """Names of the figures that a chapter's cells declare."""
    declared = (
        cell.metadata.get("mystnb", {}).get("figure", {}) for cell in read(chapter.path).cells
    )
    return [figure["name"] for figure in declared if "name" in figure]
