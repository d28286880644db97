"""Orders compared on several data sets: how the loss grows, how stable and how dear they are.

What is compared are results of experiments with the same orders, by name.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import xarray as xr
from pandas.io.formats.style import Styler

from parameter_ordering.paper.evidence.growth import freezable, mean_growth
from parameter_ordering.paper.evidence.stability import correlation
from parameter_ordering.paper.evidence.statistics import mean_difference
from parameter_ordering.paper.exhibits.style import NAMES, data_set
from parameter_ordering.paper.exhibits.tables import (
    NO_RATIO,
    markdown_table,
    ratio,
    styled,
    two_digits,
)
from parameter_ordering.paper.orders.scores import SCORES


def growth_table(compared: Mapping[str, xr.Dataset], versus: str = "random") -> Styler:
    """Growth of the test loss as a ratio to another order's, with 95 % intervals over runs.

    One row an order, one column a data set; the smallest ratio of a column is bold, and so is
    every other whose interval of the paired difference to it contains 0.
    """
    table: dict[str, dict[str, str]] = {}
    best: dict[tuple[str, str], bool] = {}
    for name, data in compared.items():
        column, growth = data_set(name), mean_growth(data.loss.sel(split="test"))
        lowest = str(
            growth.mean("run").drop_sel(order="oracle", errors="ignore").idxmin("order").item()
        )
        for order in data.order.values.tolist():
            table.setdefault(order, {})[column] = ratio(data, order, versus)
            difference = mean_difference(growth.sel(order=order), growth.sel(order=lowest))
            low, high = difference.interval()
            decided = table[order][column] != NO_RATIO
            best[order, column] = decided and (order == lowest or low <= 0 <= high)
    frame = pd.DataFrame.from_dict(table, orient="index").fillna("")
    bold = pd.DataFrame(
        [["font-weight: bold" if best.get((o, n)) else "" for n in frame] for o in frame.index],
        frame.index,
        frame.columns,
    )
    shown = styled(frame).apply(lambda _: bold, axis=None).format(_interval_below)
    return shown.format_index(lambda order: NAMES.get(order, order))


def freezable_table(compared: Mapping[str, xr.Dataset], orders: Sequence[str]) -> Styler:
    """Share of parameters that can be frozen for a growth of the test loss by 1, 5 and 10 %.

    With 95 % intervals over runs; the row "free" is the share whose gradient never varied.
    """
    columns: dict[tuple[str, str], dict[str, str]] = {}
    for name, data in compared.items():
        for tolerance in (0.01, 0.05, 0.1):
            column = columns.setdefault((data_set(name), f"{tolerance:.0%}"), {})
            for order in orders:
                estimate = freezable(data.loss.sel(split="test", order=order), tolerance)
                low, high = estimate.interval()
                column[NAMES[order]] = (
                    f"{estimate.value:.0%} ({max(low, 0):.0%}–{min(high, 1):.0%})"
                )
            column["free"] = f"{float((data.variance == 0).mean()):.0%}"
    return styled(pd.DataFrame(columns).T).format(_interval_below)


def stability_table(compared: Mapping[str, xr.Dataset]) -> Styler:
    """Rank correlation between runs, one row an order, one column a data set."""
    columns = {
        data_set(name): {
            NAMES[order]: correlation(data.ranks.sel(order=order).values)
            for order in data.order.values.tolist()
        }
        for name, data in compared.items()
    }
    return styled(pd.DataFrame(columns)).format(two_digits, na_rep="")


def scores_table(scores: Mapping[str, Callable] = SCORES) -> str:
    """What each score is, what it needs beyond training with Adam, and its source, as Markdown.

    As the first paragraph of its docstring says, and the sentences after "Extra" and "Source".
    """
    rows = {}
    for name, score in scores.items():
        text = (inspect.getdoc(score) or "").replace("``", "")
        text = re.sub(r":math:`(.+?)`", r"$\1$", text, flags=re.DOTALL)
        text = re.sub(r":func:`(\w+)`", lambda other: NAMES[other[1]], text)
        what = text.partition("\n\n")[0].partition("Extra: ")[0]
        extra, _, source = text.partition("Extra: ")[2].partition("Source: ")
        row = {"what it is": what, "extra memory and time": extra, "source": source}
        rows[NAMES[name]] = {column: " ".join(each.split()) for column, each in row.items()}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("score")
    return markdown_table(table, **{"class": "text", "widths": "20 35 25 30"})


def _interval_below(estimate: str) -> str:
    """An estimate and its interval on two lines of HTML, each in one piece."""
    return f'<span style="white-space: nowrap">{estimate.replace(" (", "<br>(")}</span>'
