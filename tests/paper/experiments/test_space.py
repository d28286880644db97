"""A world is had from its number, and the book's own choices give the book's numbers."""

import warnings
from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import qmc

from parameter_ordering import experiments
from parameter_ordering.paper.experiments import space


@pytest.mark.parametrize("data_set", space.DATA_SETS)
def test_every_choice_is_a_setting_of_its_experiments(data_set):
    known = {field.name for field in fields(getattr(experiments, data_set)())}
    assert space.chosen(0, data_set).keys() <= known
    assert {c.name for c in space.CHOICES if data_set in c.only} <= known


def test_worlds_are_one_sobol_sequence_whatever_number_is_asked_for_first():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = np.array([space.world(number) for number in (7, 0, 3, 1, 2, 6, 5, 4)])
    every = qmc.Sobol(len(space.CHOICES), scramble=True, rng=space._SCRAMBLE).random(8)
    np.testing.assert_array_equal(points, every[[7, 0, 3, 1, 2, 6, 5, 4]])


def test_sixty_four_worlds_take_every_value():
    for data_set in space.DATA_SETS:
        table = space.choices(64, data_set)
        for choice in space.CHOICES:
            if choice.name not in table:
                assert data_set not in choice.only
            elif choice.values:
                assert set(table[choice.name]) == set(choice.values)
                share = (table[choice.name] == choice.values[0]).mean()
                expected = choice.values.count(choice.values[0]) / len(choice.values)
                assert share == pytest.approx(expected, abs=1 / 32)
            else:
                low, high = choice.ends(data_set)
                assert low <= table[choice.name].min() < low * (high / low) ** 0.1
                assert low * (high / low) ** 0.9 < table[choice.name].max() <= high
        for number in range(64):
            factor = space.SGD_RANGE if table.optimizer[number] == "sgd" else 1
            assert space.chosen(number, data_set)["lr"] == pytest.approx(table.lr[number] * factor)


def test_worlds_share_no_seed_with_the_book_or_with_each_other():
    seeds = [space.experiment(n, "mnist").seed for n in range(2000)]
    assert len(set(seeds)) == 2000
    assert min(seeds) > 1000
    assert max(seeds) < space.CONFIRMED
    every = [space.experiment(5, name) for name in space.DATA_SETS]
    assert {each.data_seed for each in every} == {space.SEED + 5}


def test_a_world_before_the_first_is_refused():
    with pytest.raises(ValueError, match="counted from 0, got -1"):
        space.world(-1)


def test_every_choice_is_described():
    table = space.described()
    assert table.setting.tolist() == [choice.name for choice in space.CHOICES]
    assert table.why.str.endswith(".").all()
    assert table.range.str.len().gt(0).all()
