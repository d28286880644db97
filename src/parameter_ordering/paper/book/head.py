"""What the head of a page tells search engines, citation managers and those who share a link."""

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from docutils import nodes

PAPER = {
    "title": "Ordering the set of neural network parameters",
    "authors": ("A. V. Grabovoy", "O. Yu. Bakhteev", "V. V. Strijov"),
    "journal": "Informatics and Applications",
    "volume": "14",
    "issue": "2",
    "year": "2020",
}
_LONGEST = 200
CARD = "_static/card.png"


def description(doctree: nodes.document | None) -> str:
    """The first paragraph of a page that is more than a line, in at most 200 characters."""
    if doctree is None:
        return ""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 80:
            short = text if len(text) <= _LONGEST else text[:_LONGEST].rpartition(" ")[0] + " …"
            return re.sub(r"\$|\\[a-z]+", "", short)
    return ""


def tags(book: str, title: str, about: str, date: str, version: str, address: str, url: str) -> str:
    """Description, Open Graph, ``citation_*`` and JSON-LD of a page, as HTML.

    Args:
        book: its title.
        title: of the page.
        about: the page's description.
        date: of the build, as YYYY-MM-DD.
        version: of the edition.
        address: of the site with a slash at its end, or nothing while it has none.
        url: of the page in it.
    """
    editor = "The parameter-ordering contributors"
    named = [
        ("description", about),
        ("citation_title", title if title == book else f"{title}. In: {book}"),
        ("citation_author", editor),
        ("citation_publication_date", date.replace("-", "/")),
        ("citation_language", "en"),
        ("citation_technical_report_number", f"version {version}"),
        ("citation_reference", _reference()),
        ("twitter:card", "summary_large_image"),
    ]
    graph = [
        ("og:type", "article"),
        ("og:site_name", book),
        ("og:title", title),
        ("og:description", about),
        ("og:image", address + CARD),
    ]
    if address:
        named.append(("citation_public_url", address + url))
        graph.append(("og:url", address + url))
    linked = _linked(book, title, about, date, version, address and address + url)
    return "\n".join([*_metas("name", named), *_metas("property", graph), linked])


def sitemap(address: str, pages: Sequence[str]) -> str:
    """The list of pages for search engines."""
    places = "".join(f"<url><loc>{escape(address + page)}</loc></url>" for page in pages)
    space = "http://www.sitemaps.org/schemas/sitemap/0.9"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="{space}">{places}</urlset>\n'


def _metas(kind: str, values: Sequence[tuple[str, str]]) -> list[str]:
    return [f'<meta {kind}="{name}" content="{escape(v)}"/>' for name, v in values if v]


def _reference() -> str:
    authors = "".join(f"citation_author={each}; " for each in PAPER["authors"])
    names = {"journal": "journal_title", "year": "publication_date"}
    fields = ("title", "journal", "volume", "issue", "year")
    return authors + "; ".join(f"citation_{names.get(f, f)}={PAPER[f]}" for f in fields)


def _linked(book: str, title: str, about: str, date: str, version: str, url: str) -> str:
    authors = [{"@type": "Person", "name": each} for each in PAPER["authors"]]
    known: dict[str, Any] = {
        "@context": "https://schema.org",
        "@type": "Article",
        "headline": title,
        "description": about,
        "inLanguage": "en",
        "datePublished": date,
        "version": version,
        "isPartOf": {"@type": "Book", "name": book},
        "author": {"@type": "Organization", "name": "The parameter-ordering contributors"},
        "license": "https://opensource.org/license/mit",
        "isBasedOn": {
            "@type": "ScholarlyArticle",
            "name": PAPER["title"],
            "author": authors,
            "datePublished": PAPER["year"],
            "isPartOf": {"@type": "Periodical", "name": PAPER["journal"]},
        },
    }
    if url:
        known["url"] = url
    text = json.dumps(known, ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/ld+json">{text}</script>'
