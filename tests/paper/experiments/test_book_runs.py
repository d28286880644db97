"""The runs of the book: the settings that each asks for, and where the store has them all.

Results are made up, so that nothing is trained.
"""

import numpy as np
import pytest

from parameter_ordering import experiments
from parameter_ordering.paper.evidence.growth import mean_growth
from parameter_ordering.paper.evidence.statistics import is_well_above_zero
from parameter_ordering.paper.experiments import book_runs
from parameter_ordering.paper.experiments.experiment import Experiment, halfway
from parameter_ordering.paper.orders.catalogue import ORDERS
from parameter_ordering.paper.orders.readings import READINGS
from parameter_ordering.paper.store.results import NotStored

LEVELS = {
    "one data set": book_runs.one_data_set,
    "new data": book_runs.new_data,
    "all": book_runs.compared,
    "all, late": book_runs.compared_late,
}


def trained(asked):
    """The experiments among those asked for, but for their learning curves."""
    return [each for each, how in asked if how == "run" and isinstance(each, Experiment)]


def data_seeds(experiment):
    return {experiment.data_seed + run * experiment.own_data for run in range(experiment.runs)}


def test_t0_by_the_rule_is_read_off_the_learning_curve(asked, monkeypatch):
    monkeypatch.setattr(book_runs, "converged", lambda curve, *rule: {(7, 0.1): 99}[rule])
    experiment = experiments.mnist(lr=0.1, window=7, tolerance=0.1)
    assert book_runs.late(experiment, book_runs.PAIR) == experiment.replace(
        t0=99, orders=book_runs.PAIR
    )
    assert asked == [(experiment, "learning_curve")]


def test_levels_share_no_seed(asked):
    found = {}
    for name, level in LEVELS.items():
        del asked[:]
        level()
        found[name] = trained(asked)
    own = {name: {each.seed for each in every} for name, every in found.items()}
    assert sorted(map(sorted, own.values())) == [[0], [1], [3], [4]]
    data = [set().union(*map(data_seeds, every)) for every in found.values()]
    assert len(set().union(*data)) == sum(map(len, data)) == 1 + 25 + 25 + 15


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_settings_reach_every_experiment(asked, level):
    level(lr=0.5, runs=4)
    assert {(each.lr, each.runs) for each in trained(asked)} == {(0.5, 4)}
    assert {each.lr for each, how in asked if how == "learning_curve"} <= {0.5}


def test_every_order_is_compared_on_some_data():
    names = (*book_runs.EXPERIMENTS, *book_runs.CONFIRMED_ON)
    orders = {name: book_runs.untouched(name).orders for name in names}
    assert set().union(*orders.values()) == ORDERS.keys() - READINGS.keys()
    assert {name for name in names if "oracle" in orders[name]} == {"synthetic_3"}
    assert all(orders[name][: len(book_runs.COMPARED)] == book_runs.COMPARED for name in names)
    assert set(book_runs.COMPARED_LATE) < set(ORDERS)


def test_every_order_that_is_compared_can_be_made():
    """Lasso and Belsley's method refuse what they are not defined for."""
    small = {"objects": 40, "runs": 1, "t0": 3, "iterations": 1, "grid": 3}
    for name in (*book_runs.EXPERIMENTS, *book_runs.CONFIRMED_ON):
        experiment = book_runs.untouched(name)
        fitting = {key: value for key, value in small.items() if hasattr(experiment, key)}
        data = experiment.replace(**fitting).run(progress=False, jobs=1)
        assert data.order.values.tolist() == list(experiment.orders)


@pytest.mark.slow
@pytest.mark.parametrize("name", book_runs.CONFIRMED_ON)
def test_what_confirms_is_as_the_rule_on_development_seeds_has_it(name):
    own = getattr(experiments, name)()
    developing = own.replace(**book_runs.DEVELOPMENT)
    assert halfway(developing.learning_curve(progress=False)) == (own.t0, own.iterations)
    loss = developing.replace(orders=("random",), grid=9).run(progress=False).loss
    assert is_well_above_zero(mean_growth(loss.sel(split="test", order="random")))


def test_nets_of_two_widths_stand_side_by_side(asked):
    cases = book_runs.one_data_set()
    nets = {
        (e.name, e.hidden, e.t0 == 12345): e for e in trained(asked) if e.orders == book_runs.PAIR
    }
    for name, widths in book_runs.NARROW_AND_WIDE.items():
        for t0 in ("early", "rule"):
            data = cases[f"{name}_width", t0]
            assert data.width.values.tolist() == list(widths)
            np.testing.assert_allclose(data.k, [0, 0.5, 1])
            for width in widths:
                expected = book_runs.results(nets[name, width, t0 == "rule"]).loss.values
                assert np.array_equal(data.loss.sel(width=width), expected)


def test_nets_of_other_widths_have_a_learning_curve_twice_as_long(asked):
    book_runs.one_data_set()
    for experiment, how in asked:
        if how == "learning_curve":
            own = getattr(experiments, experiment.name)()
            other = getattr(experiment, "hidden", None) != getattr(own, "hidden", None)
            assert experiment.horizon == (1 + other) * own.horizon


def test_shared_weights_are_shared():
    experiment = experiments.mnist()
    expected = experiment.replace(shared_weights=True, orders=book_runs.PAIR)
    assert book_runs.shared(experiment) == expected


@pytest.mark.parametrize("name", book_runs.NAMES)
def test_one_setting_at_a_time_is_varied(name):
    own = getattr(experiments, name)()
    varied = {}
    for each, setting, value, experiment in book_runs.varied():
        if each == name:
            varied.setdefault(setting, {})[value] = experiment
    assert list(varied) == [setting for setting in book_runs.VARIED if hasattr(own, setting)]
    (common,) = set.intersection(*(set(values.values()) for values in varied.values()))
    for setting, values in varied.items():
        assert len(values) == len(book_runs.VARIED[setting])
        assert getattr(own, setting) in values
        for value, experiment in values.items():
            assert experiment == common.replace(**{setting: value})


def test_nothing_is_computed_and_the_chapters_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "run", None)
    monkeypatch.setattr(Experiment, "learning_curve", None)
    with pytest.raises(NotStored) as raised:
        book_runs.stored(tmp_path)
    chapters = [f"chapters/experiments/{name}" for name in book_runs.EXPERIMENTS]
    command = " ".join(["execute", *chapters, "chapters/claims", "chapters/orders"])
    assert str(raised.value).endswith(command)


def test_all_cases_of_the_book_are_there(asked, tmp_path):
    cases = book_runs.stored(tmp_path)
    names = book_runs.EXPERIMENTS
    expected = {f"{n}, {t}" for n in names for t in ("early", "rule", "shared weights")}
    expected |= {f"{n}, {t}, new data" for n in book_runs.NAMES for t in ("early", "rule")}
    expected |= {f"{name}, all orders" for name in (*names, *book_runs.CONFIRMED_ON)}
    expected |= {f"{name}, rule, orders" for name in names} | {"breast_cancer, random order"}
    widths = {(n, w) for n, both in book_runs.NARROW_AND_WIDE.items() for w in both}
    expected |= {f"{name}_width {w}, {t}" for name, w in widths for t in ("early", "rule")}
    assert set(cases) == expected
    assert {data.loss.dims for data in cases.values()} == {("split", "order", "run", "k")}
    values = {data.loss.values.tobytes() for data in cases.values()}
    assert len(values) == len(cases), "a case stands for two"
