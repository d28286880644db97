"""The ledger in one picture, strip by strip, and as a table that sorts and filters.

The picture has a line for each statement and a column for each data set. Strip by strip, a claim is
a row of cases: the claimed region is shaded and to the right of the line, whatever the direction of
the claim; a dot is the estimate, a bar its 95 % interval. A verdict is told by a mark, a colour and
a word.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np

from parameter_ordering.paper.evidence.claims import Claim, Claims, Region
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.evidence.verdict import CANNOT
from parameter_ordering.paper.exhibits.markup import Html
from parameter_ordering.paper.exhibits.style import DATA_SETS, data_set, number, with_interval

MARKS = {"supported": ("yes", "●"), "not supported": ("no", "✕"), "inconclusive": ("open", "◐")}
OTHER = ("none", "–")
_MIDDLE, EDGE = 50.0, 2.0  # percent of a strip: the threshold, and where it is cut off


def chosen(rows: Sequence[Row], names: Sequence[str], split: str = "test") -> list[Row]:
    """The rows of some claims, on one part of the data or on what has no parts."""
    return [row for row in rows if row.id in names and parts(row)[3] in ("", split)]


def grouped(
    rows: Sequence[Row], groups: Mapping[str, Mapping[str, Sequence[str]]], split: str = "test"
) -> dict[str, dict[str, list[Row]]]:
    """The rows of each statement, given ids of claims by statement and heading."""
    return {
        heading: {words: chosen(rows, names, split) for words, names in lines.items()}
        for heading, lines in groups.items()
    }


def picture(
    groups: Mapping[str, Mapping[str, Sequence[Row]]], page: str = "", *, numbers: bool = False
) -> Html:
    """One line a statement, one column a data set; in a cell the verdicts, early and late.

    Args:
        groups: rows by their statement, and statements by their heading.
        page: that has the claims, for links to them; by default the same.
        numbers: write estimates and their 95 % intervals too, and leave out the new data.
    """
    rows = [row for lines in groups.values() for each in lines.values() for row in each]
    columns = list(dict.fromkeys(map(_column, rows)))
    heads = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = ""
    for heading, lines in groups.items():
        body += f'<tr><th scope="rowgroup" colspan="{len(columns) + 1}">{escape(heading)}</th></tr>'
        for words, found in lines.items():
            cells = ([row for row in found if _column(row) == name] for name in columns)
            told = "".join(f"<td>{_cell(each, numbers)}</td>" for each in cells)
            link = f'<a href="{page}#{found[0].id}">{escape(words)}</a>'
            body += f'<tr><th scope="row">{link}</th>{told}</tr>'
    key = " ".join(f"{verdict(each)} {n}" for each, n in tally(rows).items())
    cell = "early above late" if numbers else "early, then late; after the bar the same on new data"
    return Html(
        f'<p class="key">{key}. In a cell: {cell}.</p><table class="overview"><thead><tr>'
        f"<td></td>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def tally(rows: Sequence[Row]) -> dict[str, int]:
    """How many rows have each verdict, the most frequent first."""
    return dict(Counter(row.verdict for row in rows).most_common())


def _column(row: Row) -> str:
    return data_set(parts(row)[1].removesuffix("_width"))


def _cell(rows: Sequence[Row], numbers: bool) -> str:
    if not rows:
        return ""
    known = {parts(row)[0::2]: row for row in rows}
    told = {
        level: [_mark(known.get((level, t0)), t0, numbers) for t0 in ("early", "late")]
        for level in dict.fromkeys(parts(row)[0] for row in rows)
    }
    if numbers:
        return "".join(f"<div>{each}</div>" for each in told["one data set"])
    return ' <span class="bar">|</span> '.join(" ".join(each) for each in told.values())


def _mark(row: Row | None, t0: str, numbers: bool) -> str:
    if row is None:
        return "·"
    tone, mark = MARKS.get(row.verdict, OTHER)
    text = f'<b class="verdict {tone}" role="img" aria-label="{t0}: {row.verdict}">{mark}</b>'
    if not numbers or row.verdict == CANNOT:
        return text
    value, ends = with_interval(row.estimate, row.low, row.high)
    return f"{text} {value} <small>{ends}</small>"


def strips(ledger: Claims, rows: Sequence[Row], splits: Sequence[str] = ("", "test")) -> Html:
    """Every claim with its cases against the region that it claims.

    Args:
        ledger: the claims.
        rows: judged.
        splits: which parts of the data are shown, "" for cases that have none.
    """
    shown = [row for row in rows if (parts(row)[3] or "") in splits]
    items = "".join(
        _claim(claim, [r for r in shown if r.id == claim.id]) for claim in ledger.claims
    )
    key = "Right of the line, shaded: as claimed. Dot and bar: the estimate, its 95 % interval."
    return Html(f'<p class="key">{key}</p><ol class="ledger">{items}</ol>')


def fold(title: str, content: Html) -> Html:
    """Something long behind its title; on paper it stands open."""
    return Html(f'<details class="fold"><summary>{title}</summary>{content.html}</details>')


def cases(rows: Sequence[Row]) -> Html:
    """One row a verdict with what it rests on; a script lets readers sort and filter it."""
    heads = (
        "claim", "data", "runs on", "t0", "part", "estimate", "95 % interval", "unit",
        "claimed", "p-value", "smallest effect", "verdict",
    )  # fmt: skip
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(_cells(row))}</tr>" for row in rows)
    return Html(
        f'<table class="text cases" data-sorts><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _cells(row: Row) -> Iterator[str]:
    level, experiment, t0, split = parts(row)
    estimate, interval = with_interval(row.estimate, row.low, row.high)
    for text, value in (
        (row.id, None),
        (data_set(experiment), None),
        (level, None),
        (data_set(t0), None),
        (split, None),
        (estimate, row.estimate),
        (interval, row.low),
        (row.unit, None),
        (region_in_words(row.region), row.region[0]),
        (number(row.p_adjusted), row.p_adjusted),
        (number(row.smallest_effect), row.smallest_effect),
    ):
        by = "" if value is None or not np.isfinite(value) else f' data-by="{value:.6g}"'
        yield f"<td{by}>{escape(text)}</td>"
    yield f"<td>{verdict(row.verdict)}</td>"


def _claim(claim: Claim, rows: Sequence[Row]) -> str:
    scale = _scale(rows)
    strips = "".join(_strip(row, scale[row.unit]) for row in rows)
    return (
        f'<li id="{claim.id}"><p class="says">{escape(claim.claim)} '
        f"<small>{_links(claim)}</small></p>{strips}</li>"
    )


def _links(claim: Claim) -> str:
    """Where the paper says so, and the chapters and figures that show it."""
    figures = re.findall(r"figures? (\d)", claim.where)
    anchor = f"#figure-{figures[0]}" if figures else ""
    pages = [name for name in claim.experiments if name in DATA_SETS and name != "mnist_cost"]
    anchor = anchor if len(pages) == 1 else ""
    links = (f'<a href="experiments/{name}.html{anchor}">{data_set(name)}</a>' for name in pages)
    return " · ".join([escape(claim.where), *links])


def _scale(rows: Sequence[Row]) -> dict[str, float]:
    """For each unit the distance from the threshold that fills half a strip."""
    reach: dict[str, list[float]] = {}
    for row in rows:
        ends = [abs(end - _threshold(row.region)) for end in (row.low, row.high)]
        reach.setdefault(row.unit, []).append(max([e for e in ends if np.isfinite(e)] or [1.0]))
    return {unit: min(max(r), 3 * float(np.median(r))) or 1.0 for unit, r in reach.items()}


def _threshold(region: Region) -> float:
    low, high = region
    return float(high if low == -np.inf else low)


def _place(value: float, region: Region, scale: float) -> float:
    """Percent from the left of a strip; what is claimed begins in the middle."""
    sign = -1 if region[0] == -np.inf else 1
    place = _MIDDLE + sign * 46 * (value - _threshold(region)) / scale
    return float(np.clip(place, EDGE, 100 - EDGE)) if np.isfinite(place) else EDGE


def _strip(row: Row, scale: float) -> str:
    level, experiment, t0, _ = parts(row)
    new = ", new data" if level == "new data" else ""
    of = f"{data_set(experiment)}, {data_set(t0)}{new}"
    if row.verdict == CANNOT:
        why = f'<span class="strip">{escape(row.why)}</span>'
        return line(of, t0, "none", why, verdict(row.verdict))
    ends = sorted(_place(end, row.region, scale) for end in (row.low, row.high))
    at = _place(row.estimate, row.region, scale)
    until = 100.0 if np.inf in np.abs(row.region) else _place(row.region[1], row.region, scale)
    estimate, interval = with_interval(row.estimate, row.low, row.high)
    words = f"{estimate}, 95 % interval {interval}; claimed: {region_in_words(row.region)}"
    drawn = strip(words, (_MIDDLE, until), (ends[0], ends[1]), at)
    return line(of, t0, MARKS.get(row.verdict, OTHER)[0], drawn, verdict(row.verdict))


def line(of: str, t0: str, tone: str, strip: str, told: str) -> str:
    """A case: what it is of, its strip, and what is said of it."""
    late = "" if t0 == "early" else " late"
    return f'<div class="case {tone}{late}"><span class="of">{of}</span>{strip}{told}</div>'


def strip(words: str, region: tuple[float, float], bar: tuple[float, float], dot: float) -> str:
    """A drawn strip, and the same in words; places are percent from its left."""
    spans = "".join(
        f'<i class="{name}" style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
        for name, (left, right) in (("region", region), ("bar", bar))
    )
    text = escape(words)
    return (
        f'<span class="strip" role="img" aria-label="{text}" title="{text}">'
        f'{spans}<i class="dot" style="left:{dot:.1f}%"></i></span>'
    )


def verdict(word: str) -> str:
    """A verdict as HTML: mark, colour and word."""
    tone, mark = MARKS.get(word, OTHER)
    return f'<span class="verdict {tone}"><b aria-hidden="true">{mark}</b> {escape(word)}</span>'


def parts(row: Row) -> tuple[str, str, str, str]:
    """Level, experiment, t0, and the part of the data or nothing."""
    level, experiment, t0, *split = row.case.split("/")
    return level, experiment, t0, split[0] if split else ""


def region_in_words(region: Region) -> str:
    """What a claim says of its quantity; a threshold is exact, and has all its digits."""
    low, high = (f"{end:g}".replace("-", "−") for end in region)
    if region.low == -np.inf:
        return f"below {high}"
    return f"above {low}" if region.high == np.inf else f"{low} to {high}"
