"""The runs of the book: the settings that each asks for, and where the store has them all.

Results are made up, so that nothing is trained.
"""

import numpy as np
import pytest

from parameter_ordering import experiments
from parameter_ordering.paper.evidence.growth import mean_growth
from parameter_ordering.paper.evidence.stage import STAGES, reached
from parameter_ordering.paper.evidence.statistics import is_well_above_zero
from parameter_ordering.paper.experiments import book_runs
from parameter_ordering.paper.experiments.experiment import Experiment
from parameter_ordering.paper.orders.catalogue import ORDERS
from parameter_ordering.paper.orders.readings import READINGS
from parameter_ordering.paper.store.results import NotStored

LEVELS = {
    "one data set": book_runs.one_data_set,
    "new data": book_runs.new_data,
    "all": book_runs.compared,
    "stages": book_runs.by_stage,
    "all, late": book_runs.compared_late,
}


def trained(asked):
    """The experiments among those asked for, but for their learning curves."""
    return [each for each, how in asked if how == "run" and isinstance(each, Experiment)]


def data_seeds(experiment):
    return {experiment.data_seed + run * experiment.own_data for run in range(experiment.runs)}


def test_the_late_t0_is_read_off_a_curve_of_few_runs_that_judge_nothing(asked):
    experiment = experiments.mnist(lr=0.1, own_data=True, shared_weights=True)
    assert book_runs.early_and_late(experiment) == experiment.replace(stages=(experiment.t0, 9900))
    ((curve, how),) = asked
    assert how == "learning_curve"
    plain = {"own_data": False, "shared_weights": False, "orders": book_runs.PAIR}
    plain |= {"t0": 1, "iterations": 0, "grid": 2}
    assert curve == experiment.replace(seed=0, runs=10, **plain)


def test_no_learning_curve_is_computed_twice(asked):
    """One a data set, and one for each net of another width, whatever they are wanted for."""
    for level in (book_runs.one_data_set, book_runs.new_data, book_runs.by_stage):
        level()
    curves = {experiment for experiment, how in asked if how == "learning_curve"}
    assert len(curves) == len(book_runs.EXPERIMENTS) + 2 * len(book_runs.NARROW_AND_WIDE)


def test_stages_ascend_where_the_late_one_comes_first(asked):
    experiment = experiments.mnist(t0=20_000)
    assert book_runs.early_and_late(experiment).stages == (20_000, 20_001)


def test_levels_share_no_seed(asked):
    found = {}
    for name, level in LEVELS.items():
        del asked[:]
        level()
        found[name] = trained(asked)
    own = {name: {each.seed for each in every} for name, every in found.items()}
    assert sorted(map(sorted, own.values())) == [[4], [5], [10], [11], [12]]
    assert book_runs.CURVE_SEED not in set().union(*own.values())
    data = {name: set().union(*map(data_seeds, every)) for name, every in found.items()}
    assert data.pop("stages") == data["one data set"]  # as in the chapters
    assert len(set().union(*data.values())) == sum(map(len, data.values())) == 1 + 25 + 25 + 15


@pytest.mark.parametrize("name", book_runs.EXPERIMENTS)
def test_every_stage_of_a_data_set_is_of_one_training(name, asked):
    data = book_runs.by_stage()[name]
    assert data.left.values.tolist() == list(STAGES)
    (experiment,) = [each for each in trained(asked) if each.name == name]
    assert experiment.stages == tuple(round(10_000 * (1 - share)) for share in STAGES)
    tensors = len(list(experiment.build().parameters()))
    assert ("random_within_tensors" in experiment.orders) == (tensors > 1)


def test_stages_that_fall_together_are_one_iteration_apart(asked, monkeypatch):
    monkeypatch.setattr(book_runs, "reached", lambda curve, share: 7)
    book_runs.by_stage()
    assert {each.stages for each in trained(asked)} == {tuple(range(7, 7 + len(STAGES)))}


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
    curve = developing.learning_curve(progress=False)
    half, end = (reached(curve, share) for share in (0.5, 0.05))
    assert own.t0 == pytest.approx(half, abs=25)  # read off every 25th iteration
    assert own.t0 + own.iterations == pytest.approx(end, abs=25)
    loss = developing.replace(orders=("random",), grid=9).run(progress=False).loss
    assert is_well_above_zero(mean_growth(loss.sel(split="test", order="random")))


def test_nets_of_two_widths_stand_side_by_side_each_at_its_own_stages(asked):
    cases = book_runs.one_data_set()
    nets = {
        (each.name, each.hidden): each for each in trained(asked) if each.orders == book_runs.PAIR
    }
    for name, widths in book_runs.NARROW_AND_WIDE.items():
        for place, stage in enumerate(("early", "late")):
            data = cases[f"{name}_width", stage]
            assert data.width.values.tolist() == list(widths)
            np.testing.assert_allclose(data.k, [0, 0.5, 1])
            for width in widths:
                net = nets[name, width]
                assert net.stages == (3333, 9900)
                expected = book_runs.results(net).isel(t0=place).loss.values
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
    expected = experiment.replace(shared_weights=True, orders=book_runs.PAIR, grid=6)
    assert book_runs.shared(experiment) == expected


def test_nothing_is_computed_and_the_chapters_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "run", None)
    monkeypatch.setattr(Experiment, "learning_curve", None)
    with pytest.raises(NotStored) as raised:
        book_runs.stored(tmp_path)
    chapters = [f"chapters/experiments/{name}" for name in book_runs.EXPERIMENTS]
    command = " ".join(
        ["execute", *chapters, "chapters/claims", "chapters/stages", "chapters/orders"]
    )
    assert str(raised.value).endswith(command)


def test_all_cases_of_the_book_are_there(asked, tmp_path):
    cases = book_runs.stored(tmp_path)
    names = book_runs.EXPERIMENTS
    stages = ("early", "late")
    expected = {f"{n}, {t}" for n in names for t in (*stages, "shared weights")}
    expected |= {f"{n}, {t}, new data" for n in names for t in stages}
    expected |= {f"{n}, {share:.0%} left" for n in names for share in STAGES}
    expected |= {f"{name}, all orders" for name in (*names, *book_runs.CONFIRMED_ON)}
    expected |= {f"{name}, late, orders" for name in names} | {"breast_cancer, random order"}
    widths = {(n, w) for n, both in book_runs.NARROW_AND_WIDE.items() for w in both}
    expected |= {f"{name}_width {w}, {t}" for name, w in widths for t in stages}
    assert set(cases) == expected
    assert {data.loss.dims for data in cases.values()} == {("split", "order", "run", "k")}
    values = {data.loss.values.tobytes() for data in cases.values()}
    assert len(values) == len(cases), "a case stands for two"
