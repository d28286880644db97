"""What the chapter of one experiment tells: how each order fares, as a table and in numbers."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import pandas as pd
import xarray as xr

from parameter_ordering.paper.evidence.growth import growth_ratios, mean_growth
from parameter_ordering.paper.evidence.stability import correlation, share_near_one
from parameter_ordering.paper.evidence.statistics import Ratio, mean_difference, quantile
from parameter_ordering.paper.exhibits.style import NAMES, number, with_interval
from parameter_ordering.paper.exhibits.tables import ratio, styled

_REVERSE = "covariance_descending"
_UNDECIDED = "neither faster nor more slowly, as far as these runs can tell, than"


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
            "correlation": correlation(data.ranks.sel(order=order).values),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def show(comparison: pd.DataFrame):
    """The table of :func:`compare` for a reader."""
    table = comparison.rename(index=NAMES)
    error = ((table.high - table.low) / 4).fillna(table.growth / 20)
    difference = [
        with_interval(*row) if np.isfinite(row[0]) else ("", "")
        for row in table[["difference", "low", "high"]].itertuples(index=False)
    ]
    shown = pd.DataFrame(
        {
            "growth of test loss": [*map(number, table.growth, error)],
            "against random": [value for value, _ in difference],
            "95 % interval": [interval for _, interval in difference],
            "spread over runs": [f"{value:.2g}" for value in table.spread],
            "rank correlation of runs": [number(value, 0.05) for value in table.correlation],
        },
        table.index,
    )
    return styled(shown)


def numbers(data: xr.Dataset, prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """Names and values for the prose of a chapter, each name after ``prefix``."""
    table = compare(data)
    for order, row in table.iterrows():
        for column, value in row.items():
            yield f"{prefix}{column}_{order}", float(value)
    yield f"{prefix}reading", _reading(table.loc["covariance"])
    against = {"": "random", "within_": "random_within_tensors", "descending_": _REVERSE}
    for tag, versus in against.items():
        if versus in data.order:
            yield f"{prefix}{tag}ratio", ratio(data, "covariance", versus)
            ratios = growth_ratios(data, "covariance", versus)
            shares = [f"{k / data.sizes['parameter']:.0%}" for k in ratios]
            for name, sign in (("below", -1), ("above", 1)):
                found = [_clear(each, sign) for each in ratios.values()]
                yield f"{prefix}{tag}{name}", _ranges(shares, found)
    loss = data.loss.sel(split="test", order="random").mean("run")
    last = float((loss[-3:-1] - loss[0]).sum() / (loss[1:-1] - loss[0]).sum())
    yield f"{prefix}last_two", last
    yield f"{prefix}loss_first", float(loss[0])
    yield f"{prefix}loss_last", float(loss[-1])
    for order in ("covariance", "random"):
        near = share_near_one(data.ranks.sel(order=order).values, data.k.values)
        yield f"{prefix}near_one_{order}", near.value
    yield f"{prefix}dead", float((data.variance == 0).mean())
    half = data.ranks.sel(order="covariance") <= data.sizes["parameter"] // 2
    for tensor in dict.fromkeys(data.tensor.values.tolist()):
        yield f"{prefix}half_{tensor}", float(half[:, data.tensor.values == tensor].mean())


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
