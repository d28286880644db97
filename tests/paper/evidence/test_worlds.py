"""What worlds say, on made-up losses whose reading is known."""

import numpy as np
import pytest
import xarray as xr

from parameter_ordering.paper.evidence import worlds

RUNS = 4
READINGS = ("covariance", "not_cleared")
ORDERS = (*READINGS, "random", "covariance_descending")


def outcome(growth, noise=0.02, base=1.0, seed=0):
    """Growth of the four orders; the loss starts at 10 and is ``base`` at k = 0."""
    rng = np.random.default_rng(seed)
    curve = np.array([0, 0.5, 1, 1.5, 2]) * np.array(growth)[:, None, None]
    loss = base + curve * (1 + noise * rng.normal(size=(len(ORDERS), RUNS, 1)))
    correlation = np.full((len(ORDERS), RUNS, RUNS), 0.6)
    correlation[..., range(RUNS), range(RUNS)] = 1
    return xr.Dataset(
        {
            "loss": (("split", "order", "run", "k"), np.tile(loss, (2, 1, 1, 1))),
            "start_loss": (("split", "run"), np.full((2, RUNS), 10.0)),
            "correlation": (("order", "run", "other"), correlation),
            "diverged": False,
        },
        {"split": ["train", "test"], "order": list(ORDERS), "k": np.linspace(0, 1, 5)},
    )


def of_worlds(*outcomes):
    return xr.concat(outcomes, "world").assign_coords(world=range(len(outcomes)))


DIVERGED = outcome([1, 1, 1, 1]).map(lambda each: each * np.nan).assign(diverged=True)


@pytest.fixture
def rows():
    """World 0 is the paper's, in world 1 all orders are alike, world 2 diverged on MNIST."""
    slow, alike = outcome([0.3, 0.6, 1, 2]), outcome([1, 1, 1, 1], noise=0.001)
    found = {
        "synthetic_1": of_worlds(slow, alike, slow),
        "synthetic_3": of_worlds(slow, alike, slow),
        "boston_housing": of_worlds(alike, alike, slow),
        "mnist": of_worlds(alike, alike, DIVERGED),
        "synthetic_2": of_worlds(slow, alike, slow),
    }
    return worlds.effects(found, READINGS)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1, 4])
def test_contrast_and_ratio_are_each_other_turned_round(ratio):
    assert worlds.ratio_of(worlds.contrast_of(ratio)) == pytest.approx(ratio)
    assert worlds.contrast_of(1 / ratio) == pytest.approx(-worlds.contrast_of(ratio))


def test_effects_are_those_that_were_put_in(rows):
    row = rows[(rows.data_set == "synthetic_1") & (rows.world == 0)]
    paper = row[row.reading == "covariance"].iloc[0]
    assert worlds.ratio_of(paper.contrast) == pytest.approx(0.3, rel=0.1)
    assert worlds.ratio_of(row[row.reading == "not_cleared"].contrast.iloc[0]) == pytest.approx(
        0.6, rel=0.1
    )
    assert paper.low < paper.contrast == paper.seen < paper.high
    assert worlds.ratio_of(paper.descending) == pytest.approx(0.15, rel=0.1)
    assert paper.correlation == pytest.approx(0.6)
    # The loss is 10 at the start, 1 with nothing frozen, and 1 + 2 growth with all frozen.
    assert paper.left == pytest.approx(2 * np.mean([0.3, 0.6, 1, 2]) / 9, rel=0.1)


def test_what_nobody_sees_is_no_difference():
    data = of_worlds(outcome([0.3, 0.6, 1, 2], base=1000.0))
    rows = worlds.effects({"mnist": data}, READINGS)
    assert (rows.contrast < -0.1).all()
    assert (rows.seen == 0).all()
    assert worlds.holds(rows, worlds.SAME).all()
    assert not worlds.holds(rows, worlds.SLOWER).any()
    assert worlds.surely(rows, worlds.SLOWER).fails.all()


def test_where_all_diverged_every_effect_is_missing():
    rows = worlds.effects({"mnist": of_worlds(DIVERGED)}, READINGS)
    assert rows.diverged.all()
    assert rows.drop(columns=["world", "data_set", "reading", "diverged"]).isna().all(axis=None)
    assert worlds.shares(rows).worlds.eq(0).all()


def test_a_statement_holds_by_its_region(rows):
    paper = rows[rows.reading == "covariance"]
    for name, expected in {"synthetic_1": [1, 0, 1], "boston_housing": [1, 1, 0]}.items():
        some = paper[paper.data_set == name]
        statement = worlds.GROWTH[name]
        assert worlds.holds(some, statement).tolist() == expected
        assert worlds.surely(some, statement).holds.tolist() == expected
    mnist = worlds.holds(paper[paper.data_set == "mnist"], worlds.SAME)
    assert mnist.tolist()[:2] == [True, True]
    assert mnist.isna().tolist() == [False, False, True]


def test_an_uncertain_world_is_not_sure():
    rows = worlds.effects({"mnist": of_worlds(outcome([0.8, 0.8, 1, 1], noise=0.4))}, READINGS)
    certain = worlds.surely(rows, worlds.SLOWER)
    assert not certain.holds.any()
    assert not certain.fails.any()


def test_shares_are_of_the_worlds_that_did_not_diverge(rows):
    table = worlds.shares(rows).set_index(["data_set", "statement"])
    slower = table.loc[("synthetic_1", worlds.SLOWER.text)]
    assert (slower.worlds, slower.share) == (3, pytest.approx(2 / 3))
    assert slower.low == pytest.approx(0.2077, abs=1e-4)  # Wilson's interval of 2 in 3
    assert slower.high == pytest.approx(0.9385, abs=1e-4)
    assert table.loc[("mnist", worlds.SAME.text)].worlds == 2
    assert table.loc[("synthetic_1", worlds.STABLE.text)].share == 1
    assert table.loc[("synthetic_3", worlds.VERY_STABLE.text)].share == 0
    assert len(table) == len(worlds.STATEMENTS)


def test_the_worlds_that_come_nearest_come_first(rows):
    table = worlds.together(rows)
    first = table.iloc[0]
    assert (first.world, first.reading, first.hold, first.distance) == (0, "covariance", 4, 0)
    assert set(table.world) == {0, 1}  # world 2 diverged
    alike = table[(table.world == 1) & (table.reading == "covariance")].iloc[0]
    assert alike.hold == 2
    missed = -worlds.SLOWER.high - worlds.MUCH_SLOWER.high
    assert alike.distance == pytest.approx(missed, abs=0.01)


def test_the_strongest_effects_are_the_surest_of_each_data_set(rows):
    table = worlds.strongest(rows, 2)
    assert len(set(table.data_set)) == len(table) == 2
    assert set(table.data_set) <= {"synthetic_1", "synthetic_3", "synthetic_2", "boston_housing"}
    assert (table.seen < -0.4).all()
