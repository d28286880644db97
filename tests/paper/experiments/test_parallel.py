"""Work side by side, on one machine or a cluster: the results are those of one process."""

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
import xarray as xr

from parameter_ordering import experiments
from parameter_ordering.paper.cli.main import main
from parameter_ordering.paper.experiments import parallel
from parameter_ordering.paper.experiments.parallel import _checked, side_by_side
from parameter_ordering.paper.store.sources import dependencies

SOURCES = Path(parallel.__file__).parents[3]


def tiny(**settings):
    small = {"runs": 4, "shard": 1, "t0": 4, "iterations": 4, "grid": 3, "hidden": 2}
    return experiments.boston_housing(**small | settings)


def test_processes_give_what_one_gives():
    alone = tiny().run(progress=False, jobs=1)
    xr.testing.assert_identical(tiny().run(progress=False, jobs=2), alone)


def test_a_process_has_one_thread(monkeypatch):
    def threads(piece):
        return os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]

    monkeypatch.delenv("OMP_NUM_THREADS")
    found = sorted(side_by_side(threads, [0, 1, 2], jobs=2))
    assert found == [(piece, ("1", "1")) for piece in range(3)]


ALONE = """
import time
from parameter_ordering.paper.experiments.parallel import side_by_side

print(list(side_by_side(time.sleep, [1.5], jobs=1)))
"""


def test_one_job_is_done_by_the_process_that_asks():
    """It is not its own parent, and must not end because of that."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    run = subprocess.run([sys.executable, "-c", ALONE], env=environment, capture_output=True)
    assert (run.returncode, run.stdout) == (0, b"[(1.5, None)]\n")


BUSY = """
import time
from parameter_ordering.paper.experiments.parallel import side_by_side

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
    code = "import parameter_ordering.paper.experiments.table_1"
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
