"""The overview of orders and their likeness, on made-up results whose reading is known."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from parameter_ordering.paper.exhibits.order_overview import (
    correlation_figure,
    order_correlation,
    overview_figure,
    recommendation,
    standings,
    wins,
)

RUNS, P = 10, 40
SHARE = np.linspace(0, 1, 5)


def results(**growth):
    """Growth of the test loss by order, 5 % of it noise, and ranks that are all the same."""
    rng = np.random.default_rng(0)
    curves = np.array([*growth.values()])[:, None, None] * SHARE
    test = 1 + curves * (1 + 0.05 * rng.normal(size=(len(growth), RUNS, 1)))
    ranks = np.tile(np.arange(P) + 1, (len(growth), RUNS, 1))
    return xr.Dataset(
        {
            "loss": (("split", "order", "run", "k"), np.stack([np.ones_like(test), test])),
            "ranks": (("order", "run", "parameter"), ranks),
        },
        {"split": ["train", "test"], "order": list(growth), "k": (P * SHARE).astype(int)},
    )


COMPARED = {
    "decides": results(random=1.0, covariance=0.5, obd=0.502, magnitude=0.8, oracle=0.1),
    "other": results(random=1.0, covariance=0.5, obd=0.3),
    "flat": results(random=0.0, covariance=0.1),
}


def test_the_best_and_the_tied_are_told_and_the_oracle_is_not_in_the_race():
    table = standings(COMPARED["decides"])
    expected = {"random": "", "covariance": "best", "obd": "tied", "magnitude": "", "oracle": ""}
    if table.place["obd"] == "best":  # noise decides which of the two
        expected |= {"covariance": "tied", "obd": "best"}
    assert table.place.to_dict() == expected
    assert table.ratio["magnitude"] == pytest.approx(0.8, rel=0.1)
    assert (table.low < table.ratio)[1:].all()


def test_where_random_costs_nothing_there_is_no_winner():
    table = standings(COMPARED["flat"])
    assert table.ratio.isna().all()
    assert (table.place == "").all()


def test_wins_are_counted_over_the_data_sets_that_decide():
    assert wins(COMPARED).loc["covariance"].tolist() == [1, 2]
    assert wins(COMPARED).loc["obd"].tolist() == [2, 2]


def test_the_overview_has_a_column_a_data_set_and_the_winner_as_a_star():
    figure = overview_figure(COMPARED)
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == list(COMPARED)
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names[0] == "optimal brain damage"
    points = {"*": [], "o": []}
    for line in axis.lines:
        if line.get_marker() in points:
            (x,), (y,) = line.get_data()
            full = line.get_markerfacecolor() != "none"
            points[line.get_marker()].append((int(x), names[int(y)], full))
    assert sorted(column for column, *_ in points["*"]) == [0, 1]
    assert all(full for *_, full in points["*"])
    assert {name for column, name, full in points["*"] + points["o"] if full and column == 0} == {
        "optimal brain damage",
        "proposed",
    }
    assert {column for column, *_ in points["o"]} == {0, 1}
    assert "other: optimal brain damage, 0.3" in figure.get_label()
    plt.close(figure)


def test_correlation_of_the_ranks_over_what_both_orders_have():
    data = results(random=1.0, covariance=0.5, obd=0.3)
    data["ranks"][2] = P + 1 - data.ranks[2]
    few = results(random=1.0, covariance=0.5)
    table = order_correlation({"a": data, "b": few}, ["random", "covariance", "obd", "lasso"])
    assert table.loc["covariance", "random"] == pytest.approx(1)
    assert table.loc["covariance", "obd"] == pytest.approx(-1)
    assert table.loc["lasso"].isna().all()
    figure = correlation_figure(table.drop(index="lasso", columns="lasso"))
    assert figure.axes
    plt.close(figure)


def test_the_recommendation_is_judged_against_its_control_and_the_best_other():
    control = {"recommended_within_tensors": 0.7, "random": 1.0}
    cases = {
        ("a", "early"): results(recommended=0.3, obd=0.5, magnitude=0.4, **control),
        ("b", "early"): results(recommended=0.8, obd=0.5, fresh_gradient=0.1, **control),
        ("c", "late"): results(recommended=0.3, obd=0.5).pipe(with_flat_random),
    }
    table = recommendation(cases)
    assert table["best other"].tolist() == ["magnitude", *["optimal brain damage"] * 2]
    verdicts = table.filter(like="verdict").to_numpy().tolist()
    assert verdicts[0] == ["supported", "supported"]
    assert verdicts[1] == ["not supported", "not supported"]
    assert verdicts[2] == ["cannot be judged", "cannot be judged"]
    assert float(table.loc[("a", "early"), "to random"][:4]) == pytest.approx(0.3, abs=0.02)


def with_flat_random(data):
    flat = results(random=0.0, recommended_within_tensors=0.0)
    return xr.concat([data, flat], "order")
