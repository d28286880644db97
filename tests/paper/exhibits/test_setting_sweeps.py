"""One setting varied at a time, on made-up results whose reading is known."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from parameter_ordering.paper.exhibits.setting_sweeps import (
    correlation_figure,
    flips,
    growth_figure,
    measure,
)

RUNS, P = 10, 40
ORDERS = ["covariance", "random", "random_within_tensors"]


def results(*growth):
    """Growth of the test loss in each of the three orders, 5 % of it noise."""
    rng = np.random.default_rng(0)
    noise = 1 + 0.05 * rng.normal(size=(3, RUNS, 1))
    loss = 1 + np.array(growth)[:, None, None] * np.array([0, 1, 2]) * noise
    ranks = np.tile(np.arange(P) + 1, (3, RUNS, 1))
    return xr.Dataset(
        {
            "loss": (("split", "order", "run", "k"), loss[None]),
            "ranks": (("order", "run", "parameter"), ranks),
        },
        {"split": ["test"], "order": ORDERS, "k": [0, P // 2, P]},
    )


@pytest.fixture
def table():
    """The first experiment flips with t0; the second has no setting but lr, and no growth at 2."""
    return measure(
        [
            ("one_net", "t0", 50, results(0.5, 1.0, 0.7)),
            ("one_net", "t0", 200, results(2.0, 1.0, 1.0)),
            ("one_net", "lr", 1, results(0.5, 1.0, 0.5)),
            ("one_net", "lr", 2, results(0.5, 1.0, 0.5)),
            ("another", "lr", 1, results(0.5, 1.0, 2.0)),
            ("another", "lr", 2, results(2.0, 0.0, 1.0)),
        ]
    )


def test_each_value_is_measured(table):
    assert table.value.tolist() == ["50", "200", "1", "2", "1", "2"]
    assert table.random.tolist() == pytest.approx(
        [0.5, 2, 0.5, 0.5, 0.5, np.nan], 0.05, nan_ok=True
    )
    assert table.within.tolist() == pytest.approx([0.5 / 0.7, 2, 1, 1, 0.25, 2], 0.05)
    assert table.correlation.tolist() == pytest.approx([1] * 6)
    measured = table.dropna()
    assert (measured.random_low < measured.random).all()
    assert (measured.random < measured.random_high).all()


def test_only_what_is_sure_both_ways_flips(table):
    assert flips(table).data.values.tolist() == [["one_net", "t0", "50", "200"]]
    for value, end, beyond in (("50", "random_high", 1.1), ("200", "random_low", 0.9)):
        unsure = table.assign(**{end: table[end].where(table.value != value, beyond)})
        assert flips(unsure).data.empty


def test_a_panel_for_each_setting_and_experiment(table):
    growth, correlation = growth_figure(table), correlation_figure(table)
    for figure in (growth, correlation):
        (t0, without), (lr, other) = np.reshape(figure.axes, (2, 2))
        assert [t0.get_title(), without.get_title()] == ["one net", "another"]
        assert [t0.get_ylabel(), lr.get_ylabel()] == ["t0", "lr"]
        assert [axis.axison for axis in (t0, without, lr, other)] == [True, False, True, True]
        assert [each.get_text() for each in t0.get_xticklabels()] == ["50", "200"]
    against_random = growth.axes[0].containers[0].lines[0]
    np.testing.assert_allclose(against_random.get_xydata()[:, 1], table.random[:2])
    np.testing.assert_allclose(correlation.axes[0].lines[1].get_xydata(), [[0, 1], [1, 1]])
    plt.close("all")
