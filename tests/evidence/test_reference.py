"""The book's numbers are held against the reference: what moved is named, rounding passes."""

from math import sqrt
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from parameter_ordering import experiments, study
from parameter_ordering.cli.main import main
from parameter_ordering.evidence import reference
from parameter_ordering.evidence.ledger import Row
from parameter_ordering.evidence.reference import UNITS, accept, problems, stored, table
from parameter_ordering.evidence.verdict import SUPPORTED
from parameter_ordering.store.results import NotStored, Store, only_stored, results

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
    small = {"runs": 5, "t0": 200, "iterations": 300, "grid": 4, "orders": study.PAIR}
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


def test_nothing_is_computed_and_the_chapters_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(study.Experiment, "run", None)
    monkeypatch.setattr(study.Experiment, "learning_curve", None)
    with pytest.raises(NotStored) as raised:
        stored(tmp_path)
    chapters = [f"chapters/experiments/{name}" for name in (*study.NAMES, "synthetic_2")]
    command = " ".join(["execute", *chapters, "chapters/claims", "chapters/orders"])
    assert str(raised.value).endswith(command)


def test_verdicts_are_not_computed(tmp_path):
    claims = Path(__file__).parents[2] / "chapters" / "claims.yml"
    with pytest.raises(NotStored):
        reference.verdicts(tmp_path, claims)


def test_a_store_that_is_only_read(tmp_path):
    small = experiments.boston_housing(runs=1, t0=1, iterations=1, grid=2, hidden=1)
    with only_stored(tmp_path), pytest.raises(NotStored):
        results(small)
    kept = results(small, store=Store(tmp_path), progress=False, jobs=1)
    with only_stored(tmp_path):
        xr.testing.assert_identical(results(small), kept)


@pytest.fixture
def executed(monkeypatch):
    """A book whose results are all stored, those of an experiment made up from its settings."""

    def made_up(experiment, method="run", **_):
        return dataset(crc32(repr(experiment).encode()))

    monkeypatch.setattr(study, "results", made_up)
    monkeypatch.setattr(reference, "results", made_up)
    monkeypatch.setattr(study, "converged", lambda *_: 12345)


def test_all_cases_of_the_book_are_there(executed, tmp_path):
    cases = stored(tmp_path)
    names = (*study.NAMES, "synthetic_2")
    expected = {f"{n}, {t}" for n in names for t in ("early", "rule", "shared weights")}
    expected |= {f"{n}, {t}, new data" for n in study.NAMES for t in ("early", "rule")}
    expected |= {f"{name}, all orders" for name in study.CONFIRMED_ON}
    widths = {(n, w) for n, both in study.NARROW_AND_WIDE.items() for w in both}
    expected |= {f"{name}_width {w}, {t}" for name, w in widths for t in ("early", "rule")}
    assert set(cases) == expected
    assert {data.loss.dims for data in cases.values()} == {("split", "order", "run", "k")}
    values = {data.loss.values.tobytes() for data in cases.values()}
    assert len(values) == len(cases), "a case stands for two"


@pytest.fixture
def book(tmp_path):
    (tmp_path / "chapters").mkdir()
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: chapters/index\n")
    (tmp_path / "chapters" / "index.md").write_text("# A book\n")
    (tmp_path / "chapters" / "parameters.yml").write_text("smoke: {}\n")
    return tmp_path


def test_accept_then_compare(executed, book, monkeypatch, capsys):
    row = Row("c", "one", 1.0, 0.5, 1.5, "units", None, 0.01, 0.01, 0.1, SUPPORTED)
    monkeypatch.setattr(reference, "verdicts", lambda *_: [row])
    where = ["--book", str(book)]
    assert main(["compare", *where]) == 1
    assert "run make accept" in capsys.readouterr().err
    assert main(["accept", *where]) == 0
    assert f"verdict: {SUPPORTED}" in (book / "chapters" / "verdicts.yml").read_text()
    assert main(["compare", *where]) == 0
    assert "no number moved" in capsys.readouterr().out
    path = book / "chapters" / "reference.csv"
    table = pd.read_csv(path)
    table.loc[3, "mean"] += 2 * table.loc[3, "standard_error"]
    table.to_csv(path, index=False)
    assert main(["compare", *where]) == 1
    case, order, split, k = table.loc[3, ["case", "order", "split", "k"]]
    assert f"{case}: order {order}, {split} loss at k = {k:g} is" in capsys.readouterr().err


def test_nothing_is_accepted_that_is_not_the_papers(book, capsys):
    where = ["--book", str(book)]
    assert main(["accept", *where]) == 1
    assert "parameter-ordering execute chapters/experiments/synthetic_1" in capsys.readouterr().err
    assert main(["accept", *where, "--profile", "smoke"]) == 1
    assert main(["compare", *where, "--profile", "smoke"]) == 0
    assert not list((book / "chapters").glob("*.csv"))
    assert not (book / "chapters" / "verdicts.yml").exists()
