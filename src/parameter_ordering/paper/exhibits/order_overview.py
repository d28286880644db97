"""All orders on all data sets in one picture, and how alike the orders are.

What is compared are results of experiments, by the name of the data set.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from parameter_ordering.paper.evidence.growth import growth_ratio, mean_growth
from parameter_ordering.paper.evidence.statistics import mean_difference
from parameter_ordering.paper.evidence.verdict import evidence, holm, verdict
from parameter_ordering.paper.exhibits.style import (
    COLOURS,
    DATA_SETS,
    NAMES,
    PALE,
    describe,
    number,
)
from parameter_ordering.paper.exhibits.tables import ratio

_NOT_IN_THE_RACE = ("oracle", "random_shared")
# For a squared error fresh gradient is the recommended order.
_NO_RIVALS = (
    *_NOT_IN_THE_RACE,
    "random",
    "recommended",
    "recommended_within_tensors",
    "fresh_gradient",
    "fresh_within_tensors",
)
_SCALE = (0.03, 4.0)


def standings(data: xr.Dataset) -> pd.DataFrame:
    """Growth of the test loss of each order on one data set, as a ratio to random's.

    One row an order: ``ratio``, ``low`` and ``high``, its 95 % interval, NaN where random's growth
    is not well above 0, and ``place``: "best" for the smallest growth, "tied" where the interval of
    the paired difference to that contains 0, else "".
    """
    growth = mean_growth(data.loss.sel(split="test"))
    lowest = str(growth.mean("run").drop_sel(order=list(_NOT_IN_THE_RACE), errors="ignore")
                 .idxmin("order").item())  # fmt: skip
    rows = {}
    for order in data.order.values.tolist():
        found = growth_ratio(data, order, "random")
        low, high = found.interval() if found else (np.nan, np.nan)
        difference = mean_difference(growth.sel(order=order), growth.sel(order=lowest)).interval()
        place = "tied" if difference[0] <= 0 <= difference[1] else ""
        place = "best" if order == lowest else place
        decided = found is not None and order not in _NOT_IN_THE_RACE
        value = found.value if found else np.nan
        rows[order] = [value, low, high, place if decided else ""]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["ratio", "low", "high", "place"])


def overview_figure(compared: Mapping[str, xr.Dataset]) -> Figure:
    """One column a data set, one line an order, sorted by how often it is best or tied.

    A point is the growth as a ratio to random's, on a logarithmic scale, with its interval; the
    dotted line of a column is 1. The best order of a data set is a star; what cannot be told from
    it is a full point, all else is open.
    """
    tables = {name: standings(data) for name, data in compared.items()}
    orders = _sorted(tables)
    figure, axis = plt.subplots(figsize=(7.4, 1.4 + 0.23 * len(orders)))
    for line in range(0, len(orders), 2):
        axis.axhspan(line - 0.5, line + 0.5, color=PALE, alpha=0.12, lw=0)
    for column, table in enumerate(tables.values()):
        axis.axvline(column, color=PALE, lw=0.8)
        axis.axvline(column + _across(1.0), color=PALE, ls=":", lw=1)
        for line, order in enumerate(orders):
            if order in table.index and np.isfinite(table.ratio[order]):
                _point(axis, column, line, table.loc[order])
    axis.set(xlim=(0, len(tables)), ylim=(len(orders) - 0.5, -0.5))
    titles = [DATA_SETS.get(name, name) for name in tables]
    axis.xaxis.tick_top()
    axis.set_xticks([column + 0.3 for column in range(len(tables))], titles, fontsize=8)
    axis.tick_params(axis="x", labelrotation=35)
    plt.setp(axis.get_xticklabels(), ha="left", rotation_mode="anchor")
    names = [fill(NAMES[order], 32) for order in orders]
    axis.set_yticks(range(len(orders)), names, fontsize=7, linespacing=0.95)
    axis.tick_params(length=0)
    low, high = _SCALE
    scale = f"growth as a ratio to random, each column from {low} to {high:g}"
    figure.supxlabel(scale, fontsize=7)
    best = (
        f"{DATA_SETS.get(name, name)}: {NAMES[row.Index]}, {number(row.ratio, 0.05)}"
        for name, table in tables.items()
        for row in table[table.place == "best"].itertuples()
    )
    return describe(figure, f"Best on each data set: {'; '.join(best)}.")


def _across(ratio: float) -> float:
    """Where a ratio stands in its column, from 0 to 1."""
    low, high = np.log(_SCALE)
    return float(np.clip((np.log(max(ratio, 1e-9)) - low) / (high - low), 0.03, 0.97))


def _point(axis: Axes, column: int, line: int, row: pd.Series) -> None:
    """A star, a full point or an open one, with its interval."""
    best, behind = row.place == "best", row.place == ""
    colour = PALE if behind else COLOURS["covariance"]
    ends = [column + _across(each) for each in (row.low, row.high)]
    axis.plot(ends, [line, line], color=colour, lw=1 if behind else 1.8)
    mark, size = ("*", 9) if best else ("o", 4)
    face = "none" if behind else colour
    axis.plot(column + _across(row.ratio), line, mark, ms=size, mec=colour, mfc=face, mew=1)


def _sorted(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Orders by the number of data sets on which they are best or tied, then by their ratios."""
    everywhere = pd.concat(tables.values(), keys=tables.keys(), names=["data", "order"])
    of_order = everywhere.groupby("order")
    won = of_order.place.agg(lambda places: (places != "").mean())
    size = of_order.ratio.agg(lambda ratios: np.log(ratios.clip(lower=1e-3)).mean())
    key = pd.DataFrame({"won": -won, "size": size})
    return key.sort_values(["won", "size"]).index.tolist()


def wins(compared: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """On how many of the data sets that decide an order is best or tied: ``won`` and ``of``."""
    rows = pd.concat([standings(data) for data in compared.values()]).rename_axis("order")
    rows = rows.assign(won=rows.place != "", of=rows.ratio.notna())
    return rows.groupby("order")[["won", "of"]].sum()


def recommendation(cases: Mapping[tuple[str, str], xr.Dataset]) -> pd.DataFrame:
    """What is claimed of the recommended order, judged as the paper's claims are.

    On each data set, that the loss grows more slowly than in its own control, which freezes as many
    of each tensor at random, and by less than a twentieth faster than in the best of all other
    orders. Holm's correction is over all these verdicts.

    Args:
        cases: results by the name of the data set and the t0.

    Returns:
        One row a case; the ratios with 95 % intervals, and the verdicts.
    """
    rows, found = {}, {}
    for case, data in cases.items():
        growth = mean_growth(data.loss.sel(split="test")).mean("run")
        rival = str(growth.drop_sel(order=list(_NO_RIVALS), errors="ignore").idxmin("order").item())
        rows[case] = {"to random": ratio(data, "recommended", "random"), "best other": NAMES[rival]}
        for claim, versus, high in (
            ("to its control", "recommended_within_tensors", 1.0),
            ("to the best other", rival, 1.05),
        ):
            rows[case][claim] = ratio(data, "recommended", versus)
            quantity = growth_ratio(data, "recommended", versus)
            if quantity is not None and growth_ratio(data, "random", "random") is not None:
                found[case, claim] = evidence(quantity, high=high)
    adjusted = holm([each.p for each in found.values()])
    for p, ((case, claim), each) in zip(adjusted, found.items(), strict=True):
        rows[case][f"{claim}: verdict"] = verdict(p, each.inside)
    table = pd.DataFrame.from_dict(rows, orient="index").fillna("cannot be judged")
    columns = ["to random", "to its control", "best other", "to the best other"]
    verdicts = [f"{claim}: verdict" for claim in ("to its control", "to the best other")]
    return table.reindex(columns=columns + verdicts, fill_value="cannot be judged")


def order_correlation(compared: Mapping[str, xr.Dataset], orders: Sequence[str]) -> pd.DataFrame:
    """Spearman's correlation between the ranks that two orders give in the same run.

    The mean over runs, and over the data sets that have both; NaN where none has.
    """
    found = []
    for data in compared.values():
        present = [order for order in orders if order in data.order]
        ranks = data.ranks.sel(order=present).transpose("run", "order", "parameter").values
        mean = np.mean([np.corrcoef(of_run) for of_run in ranks], 0)
        frame = pd.DataFrame(mean, present, present)
        found.append(frame.reindex(index=orders, columns=orders).to_numpy())
    together = np.ma.masked_invalid(np.stack(found)).mean(0).filled(np.nan)
    return pd.DataFrame(together, list(orders), list(orders))


def correlation_figure(correlation: pd.DataFrame) -> Figure:
    """A heat map of how alike orders are, with a tree: average linkage by 1 - correlation.

    Pairs that no data set has count as uncorrelated in the tree, and stay empty in the map.
    """
    known = correlation.fillna(0.0)
    distance = 1 - (known + known.T) / 2
    tree = linkage(squareform(distance.clip(lower=0).to_numpy(copy=True), checks=False), "average")
    named = known.rename(index=NAMES, columns=NAMES)
    with plt.rc_context({"figure.constrained_layout.use": False}):  # seaborn lays it out
        grid = sns.clustermap(
            named,
            row_linkage=tree,
            col_linkage=tree,
            mask=correlation.isna().to_numpy(),
            cmap="RdBu_r",
            vmin=-1,
            vmax=1,
            annot=True,
            fmt=".1f",
            annot_kws={"fontsize": 7},
            figsize=(7.4, 6.4),
            dendrogram_ratio=(0.12, 0.06),
            cbar_pos=None,  # the numbers are written in
        )
    grid.ax_heatmap.tick_params(labelsize=8, length=0)
    alike = known.loc["covariance"].drop("covariance")
    text = ", ".join(f"{NAMES[order]} {number(value, 0.05)}" for order, value in alike.items())
    return describe(grid.figure, f"Rank correlation of the proposed order with others: {text}.")
