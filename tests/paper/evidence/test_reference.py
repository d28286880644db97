"""The book's numbers are held against the reference: what moved is named, rounding passes."""

from math import sqrt

import numpy as np
import pytest
import torch
import xarray as xr

from parameter_ordering import experiments
from parameter_ordering.paper.evidence.reference import UNITS, accept, problems, table
from parameter_ordering.paper.experiments import book_runs

ORDERS, SPLITS, K = ["covariance", "random"], ["train", "test"], [0, 7, 301]


def dataset(seed=0, runs=5):
    """Losses as the experiments give them, in single precision."""
    loss = np.random.default_rng(seed).lognormal(size=(2, 2, runs, 3)).astype(np.float32)
    coordinates = {"split": SPLITS, "order": ORDERS, "run": range(runs), "k": K}
    return xr.Dataset({"loss": (("split", "order", "run", "k"), loss)}, coordinates)


def shifted(data, by, **where):
    """The dataset with one mean moved by so many times sqrt(2) standard errors."""
    data = data.astype(float).copy(deep=True)
    cell = data.loss.sel(**where)
    error = cell.std("run", ddof=1) / sqrt(data.sizes["run"])
    data.loss.loc[where] = cell + by * sqrt(2) * error
    return data


def test_the_table_is_means_over_runs():
    data = dataset()
    found = table({"a": data})
    for s, split in enumerate(SPLITS):
        for o, order in enumerate(ORDERS):
            for n, k in enumerate(K):
                values = [float(data.loss.values[s, o, run, n]) for run in range(5)]
                mean = sum(values) / 5
                error = sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
                expected = pytest.approx([mean, error], rel=1e-12)
                assert found.loc["a", order, split, k].tolist() == expected
    assert len(found) == 12


def test_what_is_accepted_agrees(tmp_path):
    width = dataset().assign_coords(k=np.linspace(0, 1, 3) / 3)
    cases = {"a": dataset(), "narrow": width}
    accept(tmp_path / "reference.csv", cases)
    assert problems(tmp_path / "reference.csv", cases) == []
    assert (tmp_path / "reference.csv").read_text().startswith("case,order,split,k,mean,standard")


def test_no_reference_is_a_problem(tmp_path):
    (line,) = problems(tmp_path / "reference.csv", {"a": dataset()})
    assert "run make accept" in line


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("where", [{"split": "test", "order": "random", "k": 7}])
def test_only_the_number_that_moved_is_named(tmp_path, sign, where):
    path, data = tmp_path / "reference.csv", dataset()
    accept(path, {"a": dataset(1), "mnist, early": data})
    near, far = (shifted(data, sign * UNITS * share, **where) for share in (0.9, 1.1))
    assert problems(path, {"a": dataset(1), "mnist, early": near}) == []
    (line,) = problems(path, {"a": dataset(1), "mnist, early": far})
    assert line.startswith("mnist, early: order random, test loss at k = 7 is ")
    now, before = (float(each.loss.sel(**where).mean()) for each in (far, data))
    assert f"is {now:.6g}, the reference {before:.6g}" in line


def test_without_spread_only_rounding_is_allowed(tmp_path):
    path, data = tmp_path / "reference.csv", dataset().astype(float)
    data.loss[:] = 2.0
    accept(path, {"a": data})
    assert problems(path, {"a": data + 1e-5}) == []
    assert len(problems(path, {"a": data + 3e-5})) == 12


def test_the_rounding_allowed_is_that_of_each_case(tmp_path):
    path, data = tmp_path / "reference.csv", xr.ones_like(dataset().astype(float))
    accept(path, {"large": 1000 * data, "small": data})
    assert len(problems(path, {"large": 1000 * data, "small": 1.001 * data})) == 12


@pytest.mark.parametrize(
    "cases",
    [
        {},
        {"a": dataset(), "b": dataset()},
        {"a": dataset().isel(k=[0, 1])},
        {"a": dataset().assign_coords(order=["covariance", "other"])},
        {"a": dataset().where(dataset().k < 301)},
    ],
)
def test_a_number_that_is_gone_new_or_not_one_has_moved(tmp_path, cases):
    accept(tmp_path / "reference.csv", {"a": dataset()})
    cases = cases or {"b": dataset()}
    assert problems(tmp_path / "reference.csv", cases)


def boston(**settings):
    small = {"runs": 5, "t0": 200, "iterations": 300, "grid": 4, "orders": book_runs.PAIR}
    return experiments.boston_housing(**small | settings).run(progress=False, jobs=1)


def test_rounding_passes_and_another_result_does_not(tmp_path, monkeypatch):
    """Weights changed in the last bits, as another processor would, and weights of other seeds."""
    path = tmp_path / "reference.csv"
    accept(path, {"boston_housing, early": boston()})
    assert problems(path, {"boston_housing, early": boston(seed=1)})
    assert problems(path, {"boston_housing, early": boston(iterations=330)})
    build = experiments.boston_housing.build

    def rounded(self):
        model = build(self)
        with torch.no_grad():
            for w in model.parameters():
                w *= 1 + 1e-6 * torch.rand_like(w)
        return model

    monkeypatch.setattr(experiments.boston_housing, "build", rounded)
    changed = boston()
    assert problems(path, {"boston_housing, early": changed}) == []
