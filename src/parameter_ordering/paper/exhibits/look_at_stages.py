"""The figure of stages once more, with the data sets to choose and a mark to move.

``theme/static/stages.js`` draws it; without a script the still figure above it says the same.
"""

from collections.abc import Mapping

from parameter_ordering.paper.evidence.stage import Point
from parameter_ordering.paper.exhibits.markup import Html, interactive
from parameter_ordering.paper.exhibits.stages import LOOKS, VERSUS
from parameter_ordering.paper.exhibits.style import DATA_SETS, NAMES


def look_at_stages(found: Mapping[str, list[Point]]) -> Html:
    """For each data set and order compared with: share left, ratio and the ends of its interval.

    Args:
        found: of :func:`parameter_ordering.paper.exhibits.stages.points`.
    """
    sets = [
        {
            "name": DATA_SETS[name],
            "colour": LOOKS[name][0],
            "ratios": {NAMES[each]: _told(every, each) for each in VERSUS},
        }
        for name, every in found.items()
    ]
    return interactive("data-stages", sets)


def _told(every: list[Point], versus: str) -> list[list[float]]:
    drawn = ((p.left, p.ratio) for p in every if p.versus == versus and p.ratio)
    return [[float(f"{v:.3g}") for v in (left, r.value, *r.interval())] for left, r in drawn]
