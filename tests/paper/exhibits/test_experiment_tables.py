"""The tables and numbers of the chapters, on made-up results whose reading is known."""

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from parameter_ordering.paper.exhibits import experiment_tables, tables

RUNS, K, P = 25, [0, 10, 20, 30, 40, 50, 60], 60


def results(growth):
    """Growth in the proposed order; that in the random one is 1, at each k strictly within 0, p."""
    rng = np.random.default_rng(0)
    curves = [[0, *growth, 1], [0, 1, 1, 1, 1, 1, 1]]
    noise = 1 + 0.05 * rng.normal(size=(2, 2, RUNS, len(K)))
    return xr.Dataset(
        {
            "loss": (("split", "order", "run", "k"), 3 + np.array(curves)[None, :, None] * noise),
            "ranks": (
                ("order", "run", "parameter"),
                rng.permuted(np.tile(np.arange(P) + 1, (2, RUNS, 1)), axis=2),
            ),
            "variance": (("run", "parameter"), np.ones((RUNS, P))),
        },
        {
            "split": ["train", "test"],
            "order": ["covariance", "random"],
            "k": K,
            "tensor": ("parameter", ["a"] * 20 + ["b"] * 40),
        },
    )


@pytest.mark.parametrize(
    ("growth", "below", "above"),
    [
        ([0.5, 0.5, 1.0, 2.0, 0.5], "17% to 33%, 83%", "67%"),
        ([1.0, 1.0, 1.0, 1.0, 1.0], "no share", "no share"),
        ([2.0, 2.0, 2.0, 2.0, 2.0], "no share", "17% to 83%"),
    ],
)
def test_where_the_orders_differ(growth, below, above):
    numbers = dict(experiment_tables.numbers(results(growth), "late_"))
    assert (numbers["late_below"], numbers["late_above"]) == (below, above)
    assert "late_within_ratio" not in numbers


def test_what_half_of_all_frozen_is_of_each_tensor():
    data = results([1.0] * 5)
    data["ranks"] = data.ranks.copy(data=np.broadcast_to(np.arange(P) + 1, (2, RUNS, P)))
    numbers = dict(experiment_tables.numbers(data))
    assert (numbers["half_a"], numbers["half_b"]) == (1.0, 0.25)


def test_a_ratio_without_a_denominator_is_a_dash():
    data = results([1.0] * 5)
    data["loss"] = data.loss.where(data.order == "covariance", 3.0)
    assert tables.ratio(data, "covariance", "random") == tables.NO_RATIO


def test_a_markdown_table_keeps_formulas_and_commas():
    frame = pd.DataFrame({"a": ["$x$, $y$"]}, pd.Index(["one"], name="name"))
    text = tables.markdown_table(frame, "A caption.", name="table-x")
    assert text.splitlines() == [
        "```{csv-table} A caption.",
        ":header-rows: 1",
        ":name: table-x",
        "",
        "name,a",
        'one,"$x$, $y$"',
        "```",
    ]


def test_the_table_has_the_digits_that_intervals_leave():
    shown = experiment_tables.show(experiment_tables.compare(results([0.5] * 5))).data
    assert shown.loc["random", "against random"] == ""
    value, interval = shown.loc["proposed", ["against random", "95 % interval"]]
    assert re.fullmatch(r"−0\.\d{3}", value)
    assert re.fullmatch(r"−0\.\d{3} to −0\.\d{3}", interval)
