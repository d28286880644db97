"""What stands on the front page: the main claims as cards, and one figure."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import xarray as xr

from parameter_ordering.paper.evidence.claims import Claims
from parameter_ordering.paper.evidence.growth import growth_ratio
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.exhibits.ledger_picture import (
    EDGE,
    MARKS,
    OTHER,
    chosen,
    line,
    parts,
    strip,
    tally,
    verdict,
)
from parameter_ordering.paper.exhibits.markup import Html
from parameter_ordering.paper.exhibits.style import data_set, with_interval

_TICKS = (0.1, 0.3, 1, 3)


def cards(
    ledger: Claims,
    rows: Sequence[Row],
    words: Mapping[str, Sequence[str]],
    level: str = "one data set",
) -> Html:
    """A card for each group of claims: what the paper says, and what came of it, and where.

    Args:
        ledger: the claims.
        rows: judged.
        words: ids of claims by the words of the card.
        level: of the rows that are counted.
    """
    known = {claim.id for claim in ledger.claims}
    if missing := [name for names in words.values() for name in names if name not in known]:
        raise ValueError(f"there are no claims {', '.join(missing)}")
    items = []
    for says, names in words.items():
        found = [row for row in chosen(rows, names) if parts(row)[0] == level]
        counts = tally(found)
        outcome = "".join(
            f"<li>{verdict(each)}: {_places([r for r in found if r.verdict == each])}</li>"
            for each in counts
        )
        tone = MARKS.get(next(iter(counts), ""), OTHER)[0]
        items.append(f'<li class="card {tone}"><p>{escape(says)}</p><ul>{outcome}</ul></li>')
    return Html(f'<ul class="cards">{"".join(items)}</ul>')


def _places(rows: Sequence[Row]) -> str:
    """Data sets and t0s of some rows, in words."""
    when: dict[str, list[str]] = {}
    for row in rows:
        _, experiment, t0, _ = parts(row)
        when.setdefault(data_set(experiment), []).append(data_set(t0))
    return ", ".join(f"{name} ({' and '.join(dict.fromkeys(t0))})" for name, t0 in when.items())


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
    of = f"{data_set(name)}, {data_set(t0)}"
    said = f"<span>paper: {escape(says)}</span>"
    if found is None:
        what = "hardly grows in any order: no ratio"
        return line(of, t0, "none", f'<span class="strip none">{what}</span>', said)
    low, high = found.interval()
    tone = "yes" if high < 1 else "no" if low > 1 else "open"
    value, interval = with_interval(found.value, low, high)
    left, at, right = (_on_log_axis(each) for each in (low, found.value, high))
    one = _on_log_axis(1)
    drawn = strip(f"{value}, 95 % interval {interval}", (one, one), (left, right), at)
    return line(of, t0, tone, drawn, said)


def _on_log_axis(ratio: float) -> float:
    low, high = np.log(_TICKS[0]), np.log(_TICKS[-1])
    place = (np.log(max(ratio, 1e-9)) - low) / (high - low)
    return float(np.clip(100 * place, EDGE, 100 - EDGE))
