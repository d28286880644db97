"""Tables and numbers that the chapters show."""

import hashlib
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
import xarray as xr
from pandas.io.formats.style import Styler

from parameter_ordering.paper.evidence.claims import Claim, Claims, Region
from parameter_ordering.paper.evidence.growth import growth_ratio, growth_ratios, mean_growth
from parameter_ordering.paper.evidence.ledger import Row
from parameter_ordering.paper.evidence.metrics import METRICS
from parameter_ordering.paper.evidence.stability import rank_correlations, share_near_one, stability
from parameter_ordering.paper.evidence.statistics import Ratio, mean_difference, quantile
from parameter_ordering.paper.exhibits.style import NAMES

NO_RATIO = "–"
_LATE = {"rule": "late"}
_UNDECIDED = "neither faster nor more slowly, as far as these runs can tell, than"


def styled(table: pd.DataFrame) -> Styler:
    """``table.style`` with HTML ids made from the content, so that the same table is the same page.

    pandas draws them at random.
    """
    content = repr(table.to_dict("split")).encode()
    return table.style.set_uuid(hashlib.sha256(content).hexdigest()[:8])


def ratio(data: xr.Dataset, order: str, versus: str) -> str:
    """Growth of the test loss in one order as a ratio to that in another, with its interval."""
    found = growth_ratio(data, order, versus)
    if found is None:
        return NO_RATIO
    low, high = found.interval()
    return f"{found.value:.2f} ({low:.2f}–{high:.2f})"


def compare(data: xr.Dataset) -> pd.DataFrame:
    """One row an order: how the test loss grows, and how stable the order is.

    Args:
        data: of :meth:`Experiment.run`, with the order ``random`` among others.

    Returns:
        ``growth``: of the test loss from k = 0, mean over runs and interior k, in its own units;
        ``difference``, ``low``, ``high``: growth against the random order, paired by run, with its
        95 % interval over runs (NaN for the random order itself);
        ``spread``: standard deviation of the test loss over runs, mean over interior k;
        ``correlation``: Spearman's of two runs' orders, mean over pairs.
    """
    loss = data.loss.sel(split="test")
    growth = mean_growth(loss)
    rows = {}
    for order in data.order.values.tolist():
        difference, low, high = [np.nan] * 3
        if order != "random":
            paired = mean_difference(growth.sel(order=order), growth.sel(order="random"))
            difference, (low, high) = paired.value, paired.interval()
        rows[order] = {
            "growth": float(growth.sel(order=order).mean()),
            "difference": difference,
            "low": low,
            "high": high,
            "spread": float(loss.sel(order=order).isel(k=slice(1, -1)).std("run").mean()),
            "correlation": correlation(data, order),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def show(comparison: pd.DataFrame):
    """The table of :func:`compare` for a reader."""
    table = comparison.rename(index=NAMES)
    low, high = table.pop("low"), table.pop("high")
    table.insert(2, "95 % interval", [_interval(*each) for each in zip(low, high, strict=True)])
    table.columns = [
        "growth of test loss",
        "against random",
        "95 % interval",
        "spread over runs",
        "rank correlation of runs",
    ]
    numbers = [column for column in table.columns if column != "95 % interval"]
    return styled(table).format("{:.3g}", subset=numbers, na_rep="")


def numbers(data: xr.Dataset, prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """Names and values for the prose of a chapter, each name after ``prefix``."""
    table = compare(data)
    for order, row in table.iterrows():
        for column, value in row.items():
            yield f"{prefix}{column}_{order}", float(value)
    yield f"{prefix}reading", _reading(table.loc["covariance"])
    yield f"{prefix}ratio", ratio(data, "covariance", "random")
    ratios = growth_ratios(data, "covariance", "random")
    shares = [f"{k / data.sizes['parameter']:.0%}" for k in ratios]
    for name, sign in (("below", -1), ("above", 1)):
        yield f"{prefix}{name}", _ranges(shares, [_clear(each, sign) for each in ratios.values()])
    loss = data.loss.sel(split="test", order="random").mean("run")
    yield f"{prefix}loss_first", float(loss[0])
    yield f"{prefix}loss_last", float(loss[-1])
    for order in ("covariance", "random"):
        near = share_near_one(data.ranks.sel(order=order).values, data.k.values)
        yield f"{prefix}near_one_{order}", near.value
    yield f"{prefix}dead", float((data.variance == 0).mean())


def _reading(row: pd.Series) -> str:
    if row.high < 0:
        return "more slowly than"
    return "faster than" if row.low > 0 else _UNDECIDED


def _clear(ratio: Ratio | None, sign: int) -> bool:
    """Whether the 95 % interval lies above 1, or with the sign -1 below."""
    return ratio is not None and sign * ratio.t(1) > quantile(0.95, ratio.df)


def _ranges(shares: Sequence[str], found: Sequence[bool]) -> str:
    """The shares at which something was found, neighbours as a range."""
    ranges = []
    for wanted, group in groupby(zip(shares, found, strict=True), key=lambda pair: pair[1]):
        run = [share for share, _ in group]
        if wanted:
            ranges.append(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}")
    return ", ".join(ranges) or "no share"


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"{low:.3g} to {high:.3g}"


def verdicts(ledger: Claims, rows: Sequence[Row]) -> Styler:
    """One row a claim, one column for each level and t0; cells count verdicts where they differ."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        level, _, t0, *_ = row.case.split("/")
        found.setdefault((row.id, f"{level}, {_LATE.get(t0, t0)}"), []).append(row.verdict)
    columns = list(dict.fromkeys(column for _, column in found))
    table = {
        claim.id: {"claim": claim.claim, "where": claim.where}
        | {column: _count(found.get((claim.id, column), [])) for column in columns}
        for claim in ledger.claims
    }
    frame = pd.DataFrame.from_dict(table, orient="index")
    return styled(frame).set_properties(**{"text-align": "left"})


def rules(ledger: Claims) -> Styler:
    """One row a claim: the quantity that it is about, what it says of it, and why that much."""
    frame = pd.DataFrame(
        {
            "claim": claim.id,
            "quantity": _quantity(claim),
            "claimed": _region(claim.region),
            "why": claim.why,
            "test": claim.test,
        }
        for claim in ledger.claims
    )
    return styled(frame).hide().set_properties(**{"text-align": "left"})


def outcomes(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """For prose, each row by its claim and case: the verdict, and the estimate with its interval.

    Differences that are shares of the loss are given in percent.
    """
    for row in rows:
        scale, unit = (100, " %") if row.unit.endswith("/ loss at k = 0") else (1, "")
        values = (row.estimate, row.low, row.high)
        estimate, low, high = (f"{_short(scale * value)}{unit}" for value in values)
        case = row.case.replace("/", " ")
        yield f"{row.id} {case}", f"{row.verdict} ({estimate}, {low} to {high})"


def cases(rows: Sequence[Row]) -> Styler:
    """One row a verdict, with what it rests on."""
    frame = pd.DataFrame(
        {
            "claim": row.id,
            "case": ", ".join(_LATE.get(part, part) for part in row.case.split("/")),
            "estimate": row.estimate,
            "95 % interval": f"{row.low:.3g} to {row.high:.3g}",
            "unit": row.unit,
            "claimed": _region(row.region),
            "p-value": row.p_adjusted,
            "smallest effect": row.smallest_effect,
            "verdict": row.verdict,
        }
        for row in rows
    )
    numbers = ["estimate", "p-value", "smallest effect"]
    table = styled(frame).format("{:.3g}", subset=numbers).hide()
    return table.set_properties(frame.columns.difference(numbers), **{"text-align": "left"})


def _count(found: Sequence[str]) -> str:
    if len(set(found)) < 2:
        return "".join(set(found))
    return ", ".join(f"{number} {verdict}" for verdict, number in Counter(found).most_common())


def _quantity(claim: Claim) -> str:
    """The first sentence on its metric, with the orders and the settings that the claim names."""
    what = (inspect.getdoc(METRICS[claim.metric].measure) or "").partition("\n")[0].rstrip(".")
    orders = [NAMES.get(order, order) for order in (claim.order, claim.versus) if order]
    details = [" against ".join(orders)] if orders else []
    details += [f"tolerance {claim.tolerance:.0%}"] if claim.tolerance else []
    details += [f"share {claim.share:.0%}"] if claim.share else []
    return f"{what} ({', '.join(details)})" if details else what


def _short(value: float) -> str:
    """Two digits, and no power of ten below a million."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:#.2g}".rstrip(".")


def _region(region: Region) -> str:
    low, high = region
    if low == -np.inf:
        return f"below {high:g}"
    return f"above {low:g}" if high == np.inf else f"{low:g} to {high:g}"


def markdown_table(frame: pd.DataFrame, caption: str = "", **options: str) -> str:
    """A table as Markdown, whose cells may hold formulas.

    Args:
        frame: its index and columns are shown too.
        caption: above the table.
        options: of the directive ``csv-table``, "name" to refer to it among others.
    """
    lines = [f":{name}: {value}" for name, value in options.items()]
    head = "\n".join([f"```{{csv-table}} {caption}", ":header-rows: 1", *lines])
    return f"{head}\n\n{frame.to_csv()}```"


def two_digits(value: float) -> str:
    """For a table; 0 never has a sign."""
    return f"{round(value, 2) + 0:.2f}"


def correlation(data: xr.Dataset, order: str) -> float:
    """Spearman's correlation of one order between two runs, mean over pairs."""
    return stability(rank_correlations(data.ranks.sel(order=order).values)).value
