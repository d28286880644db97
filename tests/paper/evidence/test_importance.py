"""The share of the variance that an input explains, on functions where it is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import qmc

from parameter_ordering.paper.evidence import importance as importance_module
from parameter_ordering.paper.evidence.importance import first_order, importance

N = 64  # as many points as there are worlds
# Ishigami, Homma, 1990, with a = 7 and b = 0.1: closed forms.
A, B = 7, 0.1
V1, V2 = (1 + B * np.pi**4 / 5) ** 2 / 2, A**2 / 8
TOTAL = V1 + V2 + B**2 * np.pi**8 * (1 / 18 - 1 / 50)
INDICES = {"x1": V1 / TOTAL, "x2": V2 / TOTAL, "x3": 0.0}


def ishigami(seed, n=N):
    x = qmc.scale(qmc.Sobol(3, rng=seed).random(n), [-np.pi] * 3, [np.pi] * 3)
    y = np.sin(x[:, 0]) + A * np.sin(x[:, 1]) ** 2 + B * x[:, 2] ** 4 * np.sin(x[:, 0])
    return pd.DataFrame(x, columns=list(INDICES)), y


@pytest.mark.parametrize(("name", "expected"), INDICES.items())
def test_ishigami_with_as_many_points_as_worlds(name, expected):
    found = [first_order(inputs[name].values, y) for inputs, y in map(ishigami, range(100))]
    # Bins of eight points see 90 % of what the square of a sine does.
    assert np.mean(found) == pytest.approx(expected, abs=0.06)
    assert np.std(found) < 0.1


@pytest.mark.parametrize(("name", "expected"), INDICES.items())
def test_with_many_points_and_bins_the_index_is_exact(name, expected, monkeypatch):
    monkeypatch.setattr(importance_module, "BINS", 64)
    inputs, y = ishigami(0, 2**14)
    assert first_order(inputs[name].values, y) == pytest.approx(expected, abs=0.01)


def test_the_error_is_that_of_another_sample():
    tables = [importance(*ishigami(seed), draws=1).loc["x2"] for seed in range(30)]
    errors, found = ([table[column] for table in tables] for column in ("error", "share"))
    assert 1 < np.mean(errors) / np.std(found) < 3  # Sobol's points are better than independent


def test_categories_are_taken_as_such():
    """Means 0, 3, -3 of three categories and noise of variance 6: half of the variance."""
    rng = np.random.default_rng(1)
    group = rng.integers(3, size=4000)
    y = np.array([0, 3, -3])[group] + 6**0.5 * rng.normal(size=4000)
    assert first_order(group, y) == pytest.approx(0.5, abs=0.03)


def test_what_is_beyond_chance_stands_out():
    inputs, y = ishigami(3)
    table = importance(
        inputs.assign(noise=np.random.default_rng(0).choice(list("abcd"), N)), y, draws=200
    )
    assert table.index[0] in ("x1", "x2")
    beyond = table.share > table.chance
    assert beyond[["x1", "x2"]].all()
    assert not beyond[["x3", "noise"]].any()
    assert (table.error > 0).all()


def test_chance_is_exceeded_in_one_of_twenty():
    rng = np.random.default_rng(0)
    inputs = pd.DataFrame({"a": rng.random(40), "b": list("xyxy" * 10)})
    beyond = 0
    for _ in range(100):
        table = importance(inputs, rng.normal(size=40), draws=80)
        beyond += bool((table.share > table.chance).any())
    assert beyond <= 13  # 5, and what chance and few draws add
