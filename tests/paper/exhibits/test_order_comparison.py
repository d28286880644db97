"""The tables that compare orders, on made-up results whose reading is known."""

from io import StringIO

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from parameter_ordering.paper.exhibits.figures import NAMES
from parameter_ordering.paper.exhibits.order_comparison import (
    freezable_table,
    growth_table,
    scores_table,
    stability_table,
)
from parameter_ordering.paper.exhibits.tables import NO_RATIO
from parameter_ordering.paper.orders.scores import SCORES

RUNS, P = 10, 40
SHARE = np.linspace(0, 1, 5)


def results(**growth):
    """Growth of the test loss by order, 5 % of it noise; the same ranks in all runs of one order.

    The training loss does not grow. A quarter of the parameters never varied.
    """
    rng = np.random.default_rng(0)
    curves = np.array([*growth.values()])[:, None, None] * SHARE
    test = 1 + curves * (1 + 0.05 * rng.normal(size=(len(growth), RUNS, 1)))
    ranks = np.tile(rng.permutation(P) + 1, (len(growth), RUNS, 1))
    for order, each in zip(growth, ranks, strict=True):
        if order == "random":
            each[:] = rng.permuted(each, axis=1)
    return xr.Dataset(
        {
            "loss": (("split", "order", "run", "k"), np.stack([np.ones_like(test), test])),
            "ranks": (("order", "run", "parameter"), ranks),
            "variance": (("run", "parameter"), np.tile(np.arange(P) >= P // 4, (RUNS, 1)) * 1.0),
        },
        {"split": ["train", "test"], "order": list(growth), "k": (P * SHARE).astype(int)},
    )


COMPARED = {
    "slower": results(covariance=0.5, random=1.0, oracle=0.2),
    "same": results(covariance=1.001, random=1.0),
    "flat": results(covariance=0.5, random=0.0),
}


def test_growth_is_a_ratio_a_dash_or_nothing():
    table = growth_table(COMPARED).data
    assert table.loc["covariance", "slower"].startswith("0.5")
    assert table.loc["random", "slower"] == "1.00 (1.00–1.00)"
    assert (table.loc[["covariance", "random"], "flat"] == NO_RATIO).all()
    assert table.loc["oracle"].tolist()[1:] == ["", ""]
    html = growth_table(COMPARED).to_html()
    assert NAMES["covariance"] in html
    assert "1.00<br>(1.00–1.00)" in html


def test_the_smallest_growth_is_bold_and_what_cannot_be_told_from_it():
    """But not the oracle, and nothing where there is no ratio."""
    table = growth_table(COMPARED)
    bold = {
        (table.index[row], table.columns[column])
        for (row, column), styles in table._compute().ctx.items()
        if ("font-weight", "bold") in styles
    }
    assert bold == {("covariance", "slower"), ("covariance", "same"), ("random", "same")}


def test_what_can_be_frozen_lies_between_none_and_all():
    """Slopes of 0.05, 0.1 and 0.3 leave hardly anything certain."""
    data = results(covariance=1.0, random=0.0).isel(run=slice(3))
    data["loss"][1, 0] = 1 + np.array([0.05, 0.1, 0.3])[:, None] * SHARE
    table = freezable_table({"a": data}, ["covariance", "random"]).data
    assert table.loc[("a", "10%"), NAMES["covariance"]] == "67% (0%–100%)"
    assert table.loc[("a", "1%"), NAMES["covariance"]].startswith("7% (0%–")
    assert (table[NAMES["random"]] == "100% (100%–100%)").all()
    assert (table["free"] == "25%").all()


def test_stability_of_each_order_on_each_data_set():
    table = stability_table(COMPARED)
    assert table.data.loc[NAMES["covariance"]].tolist() == pytest.approx([1, 1, 1])
    assert abs(table.data.loc[NAMES["random"], "same"]) < 0.1
    assert table.data.loc[NAMES["oracle"]].isna().tolist() == [False, True, True]
    assert "1.00" in table.to_html()
    assert "nan" not in table.to_html()


def test_scores_are_told_by_their_docstrings():
    text = scores_table()
    rows = text.removesuffix("```").partition("\n\n")[2]
    table = pd.read_csv(StringIO(rows), index_col="score", keep_default_na=False)
    assert table.index.tolist() == [NAMES[name] for name in SCORES]
    magnitude = table.loc[NAMES["magnitude"]]
    assert magnitude["what it is"] == "|w|, as in magnitude pruning."
    assert magnitude["extra memory and time"] == "none."
    assert magnitude["source"].startswith("Han, Pool, Tran, Dally")
    assert ":math:" not in text
    assert ":func:" not in text
