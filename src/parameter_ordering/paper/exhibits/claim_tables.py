"""The ledger of claims for a reader."""

import base64
import inspect
from collections.abc import Iterator, Sequence
from math import inf, isnan

import pandas as pd
from IPython.display import HTML
from pandas.io.formats.style import Styler

from parameter_ordering.paper.evidence.claims import Claim, Claims, Region
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.evidence.metrics import METRICS
from parameter_ordering.paper.exhibits.chapter_tables import styled
from parameter_ordering.paper.exhibits.style import NAMES


def verdicts(ledger: Claims, rows: Sequence[Row], kind: str) -> Styler:
    """One row a claim and data set; a column for each level and stage.

    A cell has the verdict on the test loss and its estimate, and that on the training loss.

    Args:
        ledger: the claims.
        rows: of :func:`parameter_ordering.paper.evidence.ledger.judge`, of all levels.
        kind: of the claims to show.
    """
    claims = {claim.id: claim.claim for claim in ledger.claims if claim.kind == kind}
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: row.case.endswith("/train")):
        if row.id in claims:
            level, experiment, stage, *split = row.case.split("/")
            text = row.verdict if isnan(row.estimate) else f"{row.verdict} ({short(row.estimate)})"
            line, column = lines.setdefault((claims[row.id], experiment), {}), f"{level}, {stage}"
            line[column] = f"{line[column]}; train: {text}" if split == ["train"] else text
    frame = pd.DataFrame.from_dict(lines, orient="index").fillna("")
    frame.index = pd.MultiIndex.from_tuples(lines, names=[f"{kind}s", "data set"])
    return styled(frame).set_properties(**{"text-align": "left"})


def rules(ledger: Claims) -> pd.DataFrame:
    """One row a claim: the quantity that it is about, what it says of it, and why that much."""
    return pd.DataFrame(
        {
            "claim": claim.id,
            "kind": claim.kind,
            "words": claim.claim,
            "where": claim.where,
            "quantity": _quantity(claim),
            "claimed": _region(claim.region),
            "why": claim.why,
            "test": claim.test,
        }
        for claim in ledger.claims
    )


def cases(rows: Sequence[Row]) -> pd.DataFrame:
    """One row a verdict, with what it rests on."""
    return pd.DataFrame(
        {
            "claim": row.id,
            "case": row.case.replace("/", ", "),
            "verdict": row.verdict,
            "estimate": row.estimate,
            "low": row.low,
            "high": row.high,
            "unit": row.unit,
            "claimed": _region(row.region),
            "p-value, corrected": row.p_adjusted,
            "smallest effect": row.smallest_effect,
            "why it cannot be judged": row.why,
        }
        for row in rows
    )


def download(frame: pd.DataFrame, name: str, text: str) -> HTML:
    """A link to a table as a CSV file, which the page itself holds."""
    content = base64.b64encode(frame.to_csv(index=False, float_format="%.4g").encode()).decode()
    return HTML(f'<a download="{name}" href="data:text/csv;base64,{content}">{text}</a>')


def outcomes(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """For prose, each row by its claim and case: verdict, estimate and interval."""
    for row in rows:
        numbers = f" ({short(row.estimate)}, {short(row.low)} to {short(row.high)})"
        yield (
            f"{row.id} {row.case.replace('/', ' ')}",
            row.verdict + numbers * (not isnan(row.estimate)),
        )


def short(value: float) -> str:
    """Two digits, and no power of ten below a million."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:#.2g}".rstrip(".")


def _quantity(claim: Claim) -> str:
    """The first sentence on its metric, with the orders and the settings that the claim names."""
    what = (inspect.getdoc(METRICS[claim.metric].measure) or "").partition("\n")[0].rstrip(".")
    orders = [NAMES.get(order, order) for order in (claim.order, claim.versus) if order]
    details = [" against ".join(orders)] if orders else []
    details += [f"tolerance {claim.tolerance:.0%}"] if claim.tolerance else []
    details += [f"share {claim.share:.0%}"] if claim.share else []
    return f"{what} ({', '.join(details)})" if details else what


def _region(region: Region) -> str:
    low, high = region
    if low == -inf:
        return f"below {high:g}"
    return f"above {low:g}" if high == inf else f"{low:g} to {high:g}"
