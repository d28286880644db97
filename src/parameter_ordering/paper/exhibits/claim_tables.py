"""The ledger of claims as files to download."""

import base64
import inspect
from collections.abc import Sequence

import pandas as pd
from IPython.display import HTML

from parameter_ordering.paper.evidence.claims import Claim, Claims
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.evidence.metrics import METRICS
from parameter_ordering.paper.exhibits.ledger_picture import region_in_words
from parameter_ordering.paper.exhibits.style import NAMES


def rules(ledger: Claims) -> pd.DataFrame:
    """One row a claim: the quantity that it is about, what it says of it, and why that much."""
    return pd.DataFrame(
        {
            "claim": claim.id,
            "kind": claim.kind,
            "words": claim.claim,
            "where": claim.where,
            "quantity": _quantity(claim),
            "claimed": region_in_words(claim.region),
            "why": claim.why,
            "test": claim.test,
        }
        for claim in ledger.claims
    )


def cases(rows: Sequence[Row]) -> pd.DataFrame:
    """One row a verdict, with all that it rests on."""
    return pd.DataFrame(rows).assign(region=[region_in_words(row.region) for row in rows])


def download(frame: pd.DataFrame, name: str, text: str) -> HTML:
    """A link to a table as a CSV file, which the page itself holds."""
    content = base64.b64encode(frame.to_csv(index=False, float_format="%.4g").encode()).decode()
    return HTML(f'<a download="{name}" href="data:text/csv;base64,{content}">{text}</a>')


def _quantity(claim: Claim) -> str:
    """The first sentence on its metric, with the orders and the settings that the claim names."""
    what = (inspect.getdoc(METRICS[claim.metric].measure) or "").partition("\n")[0].rstrip(".")
    orders = [NAMES.get(order, order) for order in (claim.order, claim.versus) if order]
    details = [" against ".join(orders)] if orders else []
    details += [f"tolerance {claim.tolerance:.0%}"] if claim.tolerance else []
    details += [f"share {claim.share:.0%}"] if claim.share else []
    return f"{what} ({', '.join(details)})" if details else what
