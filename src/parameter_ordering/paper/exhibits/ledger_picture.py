"""The ledger in one picture, as cards, and as a table that sorts and filters in the browser.

In the picture each claim is a row of cases. On the strip of a case the claimed region is shaded and
to the right of the line, whatever the direction of the claim; a dot is the estimate, a bar its 95 %
interval. A verdict is told by a mark, a colour and a word.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import xarray as xr

from parameter_ordering.paper.evidence.claims import Claim, Claims, Region
from parameter_ordering.paper.evidence.growth import growth_ratio
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.exhibits.style import DATA_SETS, number

MARKS = {"supported": ("yes", "●"), "not supported": ("no", "✕"), "inconclusive": ("open", "◐")}
_OTHER = ("none", "–")
_WORDS = {"rule": "late", **DATA_SETS}
_MIDDLE, _EDGE = 50.0, 2.0  # percent of a strip: the threshold, and where it is cut off
_TICKS = (0.1, 0.3, 1, 3)


class Html(NamedTuple):
    """What a notebook shows in its place."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def picture(ledger: Claims, rows: Sequence[Row], splits: Sequence[str] = ("", "test")) -> Html:
    """Every claim with its cases against the region that it claims.

    Args:
        ledger: the claims.
        rows: judged.
        splits: which parts of the data are shown, "" for cases that have none.
    """
    shown = [row for row in rows if (_parts(row)[3] or "") in splits]
    items = "".join(
        _claim(claim, [r for r in shown if r.id == claim.id]) for claim in ledger.claims
    )
    return Html(f'{_key(shown)}<ol class="ledger">{items}</ol>')


def cards(
    ledger: Claims,
    rows: Sequence[Row],
    chosen: Mapping[str, Sequence[str]],
    level: str = "one data set",
) -> Html:
    """A card for each group of claims: what the paper says, and what came of it, and where.

    Args:
        ledger: the claims.
        rows: judged.
        chosen: ids of claims by the words of the card.
        level: of the rows that are counted.
    """
    known = {claim.id for claim in ledger.claims}
    if missing := [name for names in chosen.values() for name in names if name not in known]:
        raise ValueError(f"there are no claims {', '.join(missing)}")
    items = []
    for words, names in chosen.items():
        found = [row for row in rows if row.id in names and _parts(row)[3] in ("", "test")]
        found = [row for row in found if _parts(row)[0] == level]
        counts = Counter(row.verdict for row in found)
        outcome = "".join(
            f"<li>{_verdict(each)}: {_places([r for r in found if r.verdict == each])}</li>"
            for each, _ in counts.most_common()
        )
        tone = MARKS.get(counts.most_common(1)[0][0], _OTHER)[0] if counts else "none"
        items.append(f'<li class="card {tone}"><p>{escape(words)}</p><ul>{outcome}</ul></li>')
    return Html(f'<ul class="cards">{"".join(items)}</ul>')


def _places(rows: Sequence[Row]) -> str:
    """Data sets and t0s of some rows, in words."""
    when: dict[str, list[str]] = {}
    for row in rows:
        _, experiment, t0, _ = _parts(row)
        when.setdefault(_word(experiment), []).append(_word(t0))
    return ", ".join(f"{name} ({' and '.join(dict.fromkeys(t0))})" for name, t0 in when.items())


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
    level, experiment, t0, split = _parts(row)
    error = (row.high - row.low) / 4
    interval = f"{number(row.low, error)} to {number(row.high, error)}"
    for text, value in (
        (row.id, None),
        (_word(experiment), None),
        (level, None),
        (_word(t0), None),
        (split, None),
        (number(row.estimate, error), row.estimate),
        (interval, row.low),
        (row.unit, None),
        (_region(row.region), row.region[0]),
        (number(row.p_adjusted), row.p_adjusted),
        (number(row.smallest_effect), row.smallest_effect),
    ):
        by = "" if value is None or not np.isfinite(value) else f' data-by="{value:.6g}"'
        yield f"<td{by}>{escape(text)}</td>"
    yield f"<td>{_verdict(row.verdict)}</td>"


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
    links = (f'<a href="experiments/{name}.html{anchor}">{_word(name)}</a>' for name in pages)
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
    return float(np.clip(place, _EDGE, 100 - _EDGE)) if np.isfinite(place) else _EDGE


def _strip(row: Row, scale: float) -> str:
    level, experiment, t0, _ = _parts(row)
    ends = sorted(_place(end, row.region, scale) for end in (row.low, row.high))
    at = _place(row.estimate, row.region, scale)
    until = 100.0 if np.inf in np.abs(row.region) else _place(row.region[1], row.region, scale)
    error = (row.high - row.low) / 4
    estimate, low, high = (number(v, error) for v in (row.estimate, row.low, row.high))
    words = f"{estimate}, 95 % interval {low} to {high}; claimed: {_region(row.region)}"
    tone = MARKS.get(row.verdict, _OTHER)[0]
    late = "" if t0 == "early" else " late"
    new = ", new data" if level == "new data" else ""
    of = f"{_word(experiment)}, {_word(t0)}{new}"
    return (
        f'<div class="case {tone}{late}"><span class="of">{of}</span>'
        f'<span class="strip" role="img" aria-label="{escape(words)}" title="{escape(words)}">'
        f'<i class="region" style="left:{_MIDDLE:g}%;width:{until - _MIDDLE:.1f}%"></i>'
        f'<i class="bar" style="left:{ends[0]:.1f}%;width:{ends[1] - ends[0]:.1f}%"></i>'
        f'<i class="dot" style="left:{at:.1f}%"></i></span>'
        f"{_verdict(row.verdict)}</div>"
    )


def _key(rows: Sequence[Row]) -> str:
    counts = Counter(row.verdict for row in rows)
    found = " ".join(f"{_verdict(each)} {n}" for each, n in counts.most_common())
    return (
        f'<p class="key">{found}. Right of the line, shaded: as claimed. '
        "Dot and bar: the estimate and its 95 % interval.</p>"
    )


def _verdict(verdict: str) -> str:
    tone, mark = MARKS.get(verdict, _OTHER)
    return f'<span class="verdict {tone}"><b aria-hidden="true">{mark}</b> {escape(verdict)}</span>'


def _parts(row: Row) -> tuple[str, str, str, str]:
    """Level, experiment, t0, and the part of the data or nothing."""
    level, experiment, t0, *split = row.case.split("/")
    return level, experiment, t0, split[0] if split else ""


def _word(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))


def _region(region: Region) -> str:
    low, high = region
    if low == -np.inf:
        return f"below {number(high)}"
    return f"above {number(low)}" if high == np.inf else f"{number(low)} to {number(high)}"


def headline(results: Mapping[tuple[str, str], xr.Dataset], says: Mapping[str, str]) -> Html:
    """How the loss grows in the proposed order, as a ratio to a random one, by data set and t0.

    Args:
        results: of the experiments, by name and t0.
        says: what the paper says of each experiment, in a few words; only these are shown.
    """
    rows = [
        _ratio(name, t0, data, says[name]) for (name, t0), data in results.items() if name in says
    ]
    ticks = "".join(
        f'<i class="tick" style="left:{_on_log_axis(each):.1f}%">{each:g}</i>' for each in _TICKS
    )
    return Html(
        '<div class="ledger headline" role="group" aria-label="Growth of the test loss in the '
        'proposed order, as a ratio to a random order">'
        f'{"".join(rows)}<div class="case"><span class="of"></span><span class="ticks">{ticks}'
        "</span><span></span></div></div>"
    )


def _ratio(name: str, t0: str, data: xr.Dataset, says: str) -> str:
    found = growth_ratio(data, "covariance", "random")
    late = "" if t0 == "early" else " late"
    head = f'<span class="of">{_word(name)}, {_word(t0)}</span>'
    said = f"<span>paper: {escape(says)}</span>"
    if found is None:
        what = "hardly grows in any order: no ratio"
        return (
            f'<div class="case none{late}">{head}<span class="strip none">{what}</span>{said}</div>'
        )
    low, high = found.interval()
    tone = "yes" if high < 1 else "no" if low > 1 else "open"
    error = (high - low) / 4
    ends = f"{number(low, error)} to {number(high, error)}"
    words = f"{number(found.value, error)}, 95 % interval {ends}"
    left, at, right = (_on_log_axis(each) for each in (low, found.value, high))
    return (
        f'<div class="case {tone}{late}">{head}'
        f'<span class="strip" role="img" aria-label="{words}" title="{words}">'
        f'<i class="region" style="left:{_on_log_axis(1):.1f}%;width:0"></i>'
        f'<i class="bar" style="left:{left:.1f}%;width:{right - left:.1f}%"></i>'
        f'<i class="dot" style="left:{at:.1f}%"></i></span>{said}</div>'
    )


def _on_log_axis(ratio: float) -> float:
    low, high = np.log(_TICKS[0]), np.log(_TICKS[-1])
    place = (np.log(max(ratio, 1e-9)) - low) / (high - low)
    return float(np.clip(100 * place, _EDGE, 100 - _EDGE))
