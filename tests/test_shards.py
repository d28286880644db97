"""Shards of runs are kept as they are finished, and give the same wherever they are trained."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import dask.config
import distributed  # noqa: F401 sets defaults of dask.config
import pytest
import torch
import xarray as xr

from parameter_ordering import experiments, parallel
from parameter_ordering.cli.main import main
from parameter_ordering.experiment import Experiment
from parameter_ordering.parallel import _checked, side_by_side
from parameter_ordering.store.results import Store, results
from parameter_ordering.store.sources import dependencies

SOURCES = Path(parallel.__file__).parents[1]


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
        [sys.executable, "-m", "parameter_ordering.cli.main", *command],
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


def test_processes_give_what_one_gives():
    alone = tiny().run(progress=False, jobs=1)
    xr.testing.assert_identical(tiny().run(progress=False, jobs=2), alone)


def test_a_process_has_one_thread(monkeypatch):
    def threads(piece):
        return os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]

    monkeypatch.delenv("OMP_NUM_THREADS")
    found = sorted(side_by_side(threads, [0, 1, 2], jobs=2))
    assert found == [(piece, ("1", "1")) for piece in range(3)]


BUSY = """
import time
from parameter_ordering.parallel import side_by_side

def work(path):
    for _ in range(600):
        with open(path, "a") as file:
            file.write("x")
        time.sleep(0.1)

list(side_by_side(work, {paths}, jobs=2))
"""


def test_no_process_outlives_a_killed_parent(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    parent = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(paths=[str(path) for path in paths])],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        stderr=subprocess.DEVNULL,
    )
    while parent.poll() is None and not all(path.exists() for path in paths[:2]):
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(3)
    sizes = [path.stat().st_size for path in paths[:2]]
    time.sleep(1)
    assert [path.stat().st_size for path in paths[:2]] == sizes
    assert not paths[2].exists()


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


def _watched(seen):
    loss = tiny().loss

    def watched(output, target):
        seen.append(torch.get_num_threads())
        return loss(output, target)

    return watched


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"backend": "spark"}, "unknown backend 'spark'; known are loky, dask"),
        ({"backend": "dask"}, "needs a scheduler"),
        ({"scheduler": "tcp://127.0.0.1:8786"}, "a scheduler is for the backend dask"),
    ],
)
def test_backends_that_do_not_fit(how, message):
    with pytest.raises(ValueError, match=message):
        tiny().run(progress=False, **how)


def test_without_distributed_it_says_so(monkeypatch):
    monkeypatch.setattr(parallel, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install distributed"):
        tiny().run(progress=False, backend="dask", scheduler="tcp://127.0.0.1:8786")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://"])
def test_an_address_that_does_not_answer(tmp_path, capsys, address):
    arguments = ["--runs", "2", "--out", str(tmp_path), "--backend", "dask", "--scheduler", address]
    with dask.config.set({"distributed.comm.timeouts.connect": "200ms"}):
        assert main(["run", "boston_housing", *arguments]) == 1
    assert f"no Dask scheduler answers at {address}" in capsys.readouterr().err


def test_a_worker_with_other_code_is_refused():
    code = "import parameter_ordering.experiments"
    here = dependencies(code)
    there = {"sources": here["sources"] | {"parameter_ordering.order": "edited"}}
    there["packages"] = here["packages"] | {"torch": "1.0"}
    message = r"parameter_ordering.order, torch .*, not 1\.0; give it the environment"
    with pytest.raises(RuntimeError, match=message):
        _checked(print, code, there, None)


@contextmanager
def run_dask(command, *options):
    """A process of ``dask scheduler`` or ``dask worker``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", command, *options, "--no-dashboard", "--host", "127.0.0.1"],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_lost_worker_costs_its_shard_only(tmp_path):
    class Deadly(experiments.boston_housing):
        """Kills the first worker that has trained a shard, and notes what others finish."""

        def _shard(self, runs):
            trained = super()._shard(runs)
            try:
                (tmp_path / "killed").touch(exist_ok=False)
            except FileExistsError:
                with open(tmp_path / "finished", "a") as file:
                    file.write("x")
                return trained
            os.kill(os.getpid(), signal.SIGKILL)

    file = str(tmp_path / "scheduler.json")
    worker = ("worker", "--scheduler-file", file, "--nthreads", "1", "--no-nanny")
    small = asdict(tiny())
    with (
        run_dask("scheduler", "--scheduler-file", file, "--port", "0"),
        run_dask(*worker) as one,
        run_dask(*worker) as two,
    ):
        local = tiny().run(progress=False, jobs=1)
        how = {"backend": "dask", "scheduler": _address(file)}
        lost = Deadly(**small).run(progress=False, **how)
        assert (one.poll(), two.poll()) in [(-signal.SIGKILL, None), (None, -signal.SIGKILL)]
        assert (tmp_path / "finished").read_text() == "xxxx"
        again = tiny().run(progress=False, **how)
    xr.testing.assert_equal(lost, local)
    xr.testing.assert_identical(again, local)


def _address(file):
    for _ in range(300):
        with suppress(OSError, ValueError):
            return json.loads(Path(file).read_text())["address"]
        time.sleep(0.1)
    raise TimeoutError(file)
