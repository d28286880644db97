"""What a notebook shows as HTML of our own."""

import json
from typing import Any, NamedTuple


class Html(NamedTuple):
    """What a notebook shows in its place."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def interactive(marker: str, data: Any, still: str = "") -> Html:
    """A place that a script of ``theme/static`` fills.

    Args:
        marker: the attribute by which the script finds it.
        data: what it reads there, as JSON.
        still: HTML that stands there without a script.
    """
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return Html(
        f'<div class="look" {marker}>{still}<script type="application/json">{text}</script></div>'
    )
