"""Worlds: outcomes are those of the experiment, each world is kept, and more are added."""

import numpy as np
import pytest
import xarray as xr

from parameter_ordering import experiments
from parameter_ordering.paper.experiments import space
from parameter_ordering.paper.experiments.worlds import World, Worlds, outcome
from parameter_ordering.paper.store.results import Store, results

SHORT = {"length": 0.01}
QUIET = {"progress": False, "jobs": 1}


def tiny(**settings):
    few = {"runs": 3, "t0": 8, "iterations": 5, "grid": 5, "orders": space.ORDERS}
    return experiments.boston_housing(**few | settings)


def test_the_choices_of_the_book_give_the_numbers_of_the_book():
    book = tiny().run(**QUIET)
    found = outcome(tiny(), **QUIET)
    np.testing.assert_array_equal(found.loss, book.loss)
    np.testing.assert_array_equal(found.start_loss, book.start_loss)
    for order in book.order.values:
        expected = np.corrcoef(book.ranks.sel(order=order).values)
        np.testing.assert_allclose(found.correlation.sel(order=order), expected)


def test_divergence_is_an_outcome():
    diverged = outcome(tiny(lr=1e30), **QUIET)
    assert diverged.diverged
    assert diverged.loss.isnull().all()
    whole = outcome(tiny(), **QUIET)
    assert not whole.diverged
    assert {name: each.dims for name, each in diverged.items()} == {
        name: each.dims for name, each in whole.items()
    }


def test_a_variance_that_overflows_is_divergence():
    """Up to t0 the loss of this world is finite, but the square of a gradient is not."""
    assert outcome(space.experiment(26, "boston_housing", iterations=2)).diverged


@pytest.fixture
def run(monkeypatch):
    """The numbers of the worlds that are run."""
    run, inner = [], Worlds._world

    def noted(self, numbers):
        run.append(numbers.start)
        return inner(self, numbers)

    monkeypatch.setattr(Worlds, "_world", noted)
    return run


def test_more_worlds_are_added_to_those_that_are_there(run, tmp_path):
    store = Store(tmp_path)
    few = results(Worlds(data_set="synthetic_3", worlds=2, **SHORT), store=store, **QUIET)
    many = results(Worlds(data_set="synthetic_3", worlds=3, **SHORT), store=store, **QUIET)
    assert run == [0, 1, 2]
    xr.testing.assert_equal(many.sel(world=[0, 1]), few)


def test_a_world_is_the_same_whatever_runs_beside_it():
    of_three = Worlds(data_set="synthetic_3", worlds=3, **SHORT).run(**QUIET)
    alone = outcome(space.experiment(2, "synthetic_3", 0.01), **QUIET)
    xr.testing.assert_equal(of_three.sel(world=2, drop=True), alone)


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    ask = Worlds(data_set="synthetic_3", worlds=3, **SHORT)
    inner, store = Worlds._world, Store(tmp_path)

    def interrupted(self, numbers):
        if numbers.start == 1:
            raise KeyboardInterrupt
        return inner(self, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(Worlds, "_world", interrupted)
        with pytest.raises(KeyboardInterrupt):
            results(ask, store=store, **QUIET)
    again = []
    monkeypatch.setattr(Worlds, "_world", lambda s, n: again.append(n.start) or inner(s, n))
    results(ask, store=store, **QUIET)
    assert again == [1, 2]


def test_a_world_again_has_seeds_of_its_own():
    again = World(data_set="mnist", world=5, runs=3, length=0.5)
    first = space.experiment(5, "mnist", 0.5)
    assert again.experiment.seed == again.experiment.data_seed == space.CONFIRMED + 5
    fresh = {"runs": first.runs, "seed": first.seed, "data_seed": first.data_seed}
    assert again.experiment.replace(**fresh) == first


def test_a_world_again_is_an_outcome():
    found = World(data_set="synthetic_3", world=1, runs=3, **SHORT).run(**QUIET)
    assert found.world.values.tolist() == [1]
    assert found.loss.sizes["run"] == 3


@pytest.mark.parametrize("settings", [{"data_set": "mnst"}, {"worlds": 0}, {"length": 0.0}])
def test_wrong_settings_are_named(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=name):
        Worlds(**{"data_set": "mnist"} | settings)


def test_every_data_set_of_the_space_can_be_run():
    assert set(space.DataSet.__args__) == set(space.DATA_SETS)
