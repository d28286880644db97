"""Shards of runs are kept as they are finished; each is trained as it is set, on one thread."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import xarray as xr

from parameter_ordering import experiments
from parameter_ordering.paper.experiments.experiment import Experiment
from parameter_ordering.paper.experiments.protocol import Diverged, seeds, uniform
from parameter_ordering.paper.experiments.shard import Shard, one_thread
from parameter_ordering.paper.store.results import Store, results

SOURCES = Path(experiments.__file__).parents[3]


def tiny(**settings):
    small = {"runs": 4, "shard": 1, "t0": 4, "iterations": 4, "grid": 3, "hidden": 2}
    return experiments.boston_housing(**small | settings)


@pytest.fixture
def trained(monkeypatch):
    """The shards that this process trains, in the order of their training."""
    shard, trained = Experiment._shard, []

    def noted(self, runs, *args):
        trained.append(runs)
        return shard(self, runs, *args)

    monkeypatch.setattr(Experiment, "_shard", noted)
    return trained


def test_finished_shards_are_not_trained_again(trained):
    shards = {}
    whole = tiny().run(progress=False, jobs=1, shards=shards)
    assert list(shards) == trained == [range(n, n + 1) for n in range(4)]
    del shards[range(1, 2)], trained[:]
    xr.testing.assert_identical(tiny().run(progress=False, jobs=1, shards=shards), whole)
    assert trained == [range(1, 2)]


def test_an_interrupted_run_goes_on(trained, tmp_path, monkeypatch):
    undisturbed = results(tiny(), store=Store(tmp_path / "a"), progress=False, jobs=1)
    del trained[:]
    noted = Experiment._shard

    def interrupted(self, runs, *args):
        if runs == range(2, 3):
            raise KeyboardInterrupt
        return noted(self, runs, *args)

    store = Store(tmp_path / "b")
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            results(tiny(), store=store, progress=False, jobs=1)
    assert not list(store.root.glob("*.nc"))
    again = results(tiny(), store=store, progress=False, jobs=1)
    assert trained == [range(n, n + 1) for n in range(4)]
    xr.testing.assert_identical(again, undisturbed)


def test_what_a_killed_run_had_finished_is_kept(trained, tmp_path):
    settings = {"runs": 5, "shard": 1, "t0": 50, "iterations": 50, "grid": 3}
    options = [each for name, value in settings.items() for each in (f"--{name}", str(value))]
    command = ["run", "boston_housing", *options, "--jobs", "1", "--out", str(tmp_path)]
    killed = subprocess.Popen(
        [sys.executable, "-m", "parameter_ordering.paper.cli.main", *command],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        stderr=subprocess.DEVNULL,
    )
    while killed.poll() is None and len(list(tmp_path.glob("shards/*.json"))) < 2:
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    experiment, how = experiments.boston_housing(**settings), {"progress": False, "jobs": 1}
    again = results(experiment, store=Store(tmp_path), **how)
    assert 1 <= len(trained) <= 4
    xr.testing.assert_equal(again, experiment.run(**how))
    assert not list(tmp_path.glob("**/*.part"))


def test_more_runs_need_only_the_new(trained, tmp_path):
    store, how = Store(tmp_path), {"progress": False, "jobs": 1}
    few = results(tiny(runs=5, shard=2), store=store, **how)
    del trained[:]
    many = results(tiny(runs=7, shard=2), store=store, **how)
    # Run 4 was trained alone: as part of a pair, it may differ by rounding.
    assert trained == [range(4, 6), range(6, 7)]
    assert many.run.values.tolist() == list(range(7))
    xr.testing.assert_equal(many.isel(run=slice(4)), few.isel(run=slice(4)))


@pytest.mark.parametrize("change", [{"t0": 5}, {"seed": 1}, {"shard": 2}, {"lr": 2e-3}])
def test_shards_of_other_settings_are_not_taken(trained, tmp_path, change):
    store = Store(tmp_path)
    results(tiny(runs=2), store=store, progress=False, jobs=1)
    del trained[:]
    results(tiny(runs=2, **change), store=store, progress=False, jobs=1)
    assert sum(map(len, trained)) == 2


def test_a_damaged_shard_is_trained_again(trained, tmp_path):
    store = Store(tmp_path)
    first = results(tiny(), store=store, progress=False, jobs=1)
    del trained[:]
    next((tmp_path / "shards").glob("*.nc")).write_bytes(b"half")
    for file in tmp_path.glob("*.nc"):
        file.unlink()
    xr.testing.assert_identical(results(tiny(), store=store, progress=False, jobs=1), first)
    assert len(trained) == 1


def test_a_shard_has_one_thread(monkeypatch):
    seen = []
    monkeypatch.setattr(tiny().__class__, "loss", staticmethod(_watched(seen)))
    torch.set_num_threads(2)
    try:
        tiny(runs=1).run(progress=False, jobs=1)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_one_shard_of_a_process_at_a_time():
    entered = threading.Event()

    def enter():
        with one_thread():
            entered.set()

    other = threading.Thread(target=enter)
    with one_thread():
        other.start()
        assert not entered.wait(0.05)
    other.join()
    assert entered.is_set()


def test_settings_reach_the_training():
    runs = range(1, 4)
    experiment = tiny(seed=3, kappa="0.5", lr=0.1, orders=("all_samples",))
    training = Shard(experiment, runs)._training()
    assert training.covariance.kappa == training.all_samples.kappa == 0.5
    assert training.exact.kappa == 1
    assert training.optimizer.param_groups[0]["lr"] == 0.1
    assert training.tie_seeds == seeds(3, "ties", runs)
    assert training.own_seeds == seeds(3, "own order", runs)
    assert training.common_seed == seeds(3, "common order", [0])[0]
    C_0 = uniform(training.start, seeds(3, "C_0", runs))
    torch.testing.assert_close(training.covariance.diagonal(), C_0, rtol=0, atol=0)


def test_until_the_freeze_no_order_is_to_blame():
    shard, t0 = Shard(tiny(), range(4)), tiny().t0
    shard.minibatches.t = t0
    assert "order" not in shard._where(Diverged(1, 0, t0, torch.inf))
    assert "nothing frozen" in shard._where(Diverged(1, 0, t0 + 1, torch.inf))
    assert "order covariance, k = 16" in shard._where(Diverged(1, 1, t0 + 1, torch.inf))


def test_no_variant_is_trained_twice():
    variants = Shard(tiny(grid=4, orders=("random", "covariance")), range(1))._variants()
    assert variants == [
        ("random", 0), ("random", 10), ("random", 21), ("covariance", 10), ("covariance", 21)
    ]  # fmt: skip


def _watched(seen):
    loss = tiny().loss

    def watched(output, target):
        seen.append(torch.get_num_threads())
        return loss(output, target)

    return watched
