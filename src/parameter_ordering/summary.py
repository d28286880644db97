"""The numbers of an experiment that its chapter quotes."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from parameter_ordering.figures import NAMES
from parameter_ordering.growth import mean_growth
from parameter_ordering.stability import rank_correlations, share_near_one, stability
from parameter_ordering.statistics import mean_difference

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
            "correlation": stability(rank_correlations(data.ranks.sel(order=order).values)).value,
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
    return table.style.format("{:.3g}", subset=numbers, na_rep="")


def numbers(data: xr.Dataset, prefix: str = "") -> Iterator[tuple[str, float | str]]:
    """Names and values for the prose of a chapter, each name after ``prefix``."""
    table = compare(data)
    for order, row in table.iterrows():
        for column, value in row.items():
            yield f"{prefix}{column}_{order}", float(value)
    yield f"{prefix}reading", _reading(table.loc["covariance"])
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


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"{low:.3g} to {high:.3g}"
