"""The last touch to the HTML of a page: what Sphinx and pandas leave undone, for eyes and ears.

Figures say how large they are, so that nothing jumps while they load, and can be opened alone; wide
tables scroll inside their own frame; an empty corner is no header, and a formula that is one has a
name; a minus is a minus.
"""

import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from urllib.parse import unquote

_IMAGE = re.compile(r'<img (?P<rest>[^>]*?)src="(?P<src>[^"]+\.svg)"(?P<more>[^>]*?)/?>')
_SIDES = ("width", "height")
_PIXELS = 96 / 72  # in a point
# Of docutils, on references: one is deprecated, and a list has no children then that it may have.
_ROLE = re.compile(r'<(div|a)([^>]*?) role="(?:doc-biblioentry|doc-backlink|list(?=" class="cit))"')
_EMPTY = re.compile(r"<th((?:\s[^>]*)?)>(?:&nbsp;|\s|<p>\s*</p>)*</th>")
_FORMULA = re.compile(r'<th([^>]*)>(<p><span class="math">\\\((.*?)\\\)</span></p>)</th>')
_TABLE = re.compile(r"<table.*?</table>", re.DOTALL)
_VERBATIM = re.compile(
    r"(<(?:pre|code|script|style|svg|kbd)\b.*?</(?:pre|code|script|style|svg|kbd)>|<[^>]*>)"
    r"|(\\\(.*?\\\)|\\\[.*?\\\])",
    re.DOTALL,
)
_HYPHEN = re.compile(r"(?<![\w.,:/…–−-])-(?=\d)(?P<zero>0(?:\.0+)?(?![\w.]*\d))?")


def polished(body: str, file: Callable[[str], Path | None]) -> str:
    """The HTML of a page's text, finished.

    Args:
        body: what the builder made.
        file: where an image lies that the page calls by this name; with ``-narrow`` before the dot,
            the one for phones, if there is any.
    """
    body = _IMAGE.sub(lambda found: _figure(found, file), body)
    body = _ROLE.sub(r"<\1\2", body)
    body = _EMPTY.sub(r"<td\1></td>", body)
    body = _FORMULA.sub(r'<th\1 aria-label="\3">\2</th>', body)
    body = _TABLE.sub(lambda table: f'<div class="scrolls" tabindex="0">{table[0]}</div>', body)
    return with_minus(body)


def with_minus(html: str) -> str:
    """Numbers below zero with a true minus; code, formulas and drawings stay as they are.

    >>> with_minus("<td>-0.07</td> <code>x = -1</code> pages 3-4, -2 to -1, 1e-3, -0.00")
    '<td>−0.07</td> <code>x = -1</code> pages 3-4, −2 to −1, 1e-3, 0.00'
    """
    parts, last = [], 0
    for verbatim in _VERBATIM.finditer(html):
        parts += [_HYPHEN.sub(_minus, html[last : verbatim.start()]), verbatim[0]]
        last = verbatim.end()
    return "".join([*parts, _HYPHEN.sub(_minus, html[last:])])


def _minus(found: re.Match) -> str:
    return found["zero"] or "−"


def _figure(found: re.Match, file: Callable[[str], Path | None]) -> str:
    """An image with its size, inside a link to itself, which a phone can enlarge."""
    path = file(Path(unquote(found["src"])).name)
    attributes = f"{found['rest']}{found['more']}".strip()
    size = _size(path) if path else None
    if not path or not size or "width=" in attributes:
        return found[0]
    image = (
        f'<img {attributes} src="{found["src"]}" width="{size[0]}" height="{size[1]}" '
        'loading="lazy" decoding="async"/>'
    )
    narrow = file(f"{path.stem}-narrow.svg")
    if narrow and (size := _size(narrow)):
        source = found["src"].replace(".svg", "-narrow.svg")
        image = (
            f'<picture><source media="(max-width: 600px)" srcset="{source}" '
            f'width="{size[0]}" height="{size[1]}"/>{image}</picture>'
        )
    return f'<a class="enlarge" href="{escape(found["src"])}">{image}</a>'


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height of an SVG in pixels."""
    head = re.search(r"<svg\b[^>]*>", path.read_text(encoding="utf-8")[:2000], re.DOTALL)
    sides = [re.search(rf'\b{side}="([\d.]+)pt"', head[0] if head else "") for side in _SIDES]
    width, height = (round(float(side[1]) * _PIXELS) if side else 0 for side in sides)
    return (width, height) if width and height else None
