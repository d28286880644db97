"""The cards of the front page: they say what came out, and where."""

import numpy as np
import pytest
from bs4 import BeautifulSoup

from parameter_ordering.paper.evidence.claims import Region, load_claims
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.exhibits import front_page


def row(case, verdict):
    return Row("mnist-growth", case, "ratio", Region(-np.inf, 0.95), verdict)


def test_cards_say_where(request):
    ledger = load_claims(request.config.rootpath / "chapters" / "claims.yml")
    early = row("one data set/mnist/early/test", "supported")
    rows = [early, row("one data set/mnist/late/test", "not supported")]
    html = front_page.cards(ledger, rows, {"It grows less.": ["mnist-growth"]}).html
    lines = [item.text for item in BeautifulSoup(html, "html.parser").select("ul ul li")]
    assert lines == ["● supported: MNIST (early)", "✕ not supported: MNIST (late)"]
    with pytest.raises(ValueError, match="no-such"):
        front_page.cards(ledger, rows, {"?": ["no-such"]})
