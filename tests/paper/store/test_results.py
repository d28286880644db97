"""A result is computed once for its inputs, read back the same, and never taken from a bad file."""

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from parameter_ordering import experiments
from parameter_ordering.paper.store.files import sha256
from parameter_ordering.paper.store.results import NotStored, Store, key, only_stored, results


def dataset():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "loss": (("split", "run"), rng.normal(size=(2, 3))),
            "ranks": (("run", "parameter"), rng.permutation(300).reshape(3, 100)),
            "flag": True,
        },
        {"split": ["train", "test"], "run": [0, 1, 2], "name": ("parameter", ["w"] * 100)},
        {"provenance": json.dumps({"data": {"name": "none"}})},
    )


def never():
    raise AssertionError("computed again")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_saved_and_loaded_are_equal(store):
    first = store.get("a", {"n": 1}, dataset)
    again = store.get("a", {"n": 1}, never)
    xr.testing.assert_identical(first, again)
    xr.testing.assert_equal(first, dataset())
    assert again["ranks"].dtype == dataset()["ranks"].dtype
    assert again.attrs == dataset().attrs


def test_every_input_counts(store):
    inputs = {"settings": {"n": 1, "lr": 0.1}, "sources": {"m": "0"}, "data": "abc"}
    changed = [
        {**inputs, "settings": {"n": 2, "lr": 0.1}},
        {**inputs, "settings": {"n": 1, "lr": np.nextafter(0.1, 1).item()}},
        {**inputs, "sources": {"m": "1"}},
        {**inputs, "data": "abd"},
        {**inputs, "more": None},
    ]
    same = {"data": "abc", "sources": {"m": "0"}, "settings": {"lr": 0.1, "n": 1}}
    assert key(inputs) == key(same)
    assert len({key(each) for each in (inputs, *changed)}) == len(changed) + 1


def test_a_key_holds_no_nan():
    with pytest.raises(ValueError, match="JSON"):
        key({"lr": float("nan")})


def test_the_note_says_what_the_result_is(store):
    store.get("a", {"n": 1}, dataset, lambda: 1e6)
    path = store.path("a", {"n": 1})
    note = json.loads(path.with_suffix(".json").read_text())
    assert note["inputs"] == {"n": 1}
    assert note["attributes"] == {"data": {"name": "none"}}
    assert note["sha256"] == sha256(path)
    assert note["bytes"] == path.stat().st_size
    assert 1e6 <= note["seconds"] < 1e6 + 60  # with those that what was found had taken


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".nc", flip),
        (".nc", lambda path: os.truncate(path, 100)),
        (".nc", lambda path: path.write_bytes(b"")),
        (".nc", Path.unlink),
        (".json", lambda path: path.write_text("{")),
        (".json", lambda path: path.write_text("{}")),
        (".json", Path.unlink),
    ],
)
def test_a_damaged_file_is_computed_again(store, suffix, damage):
    first = store.get("a", {"n": 1}, dataset)
    damage(store.path("a", {"n": 1}).with_suffix(suffix))
    xr.testing.assert_identical(store.get("a", {"n": 1}, dataset), first)
    store.get("a", {"n": 1}, never)


def test_what_a_killed_writer_left_is_swept(store):
    path = store.path("a", {"n": 1})
    part = path.with_name(f"{path.name}.1234.part")
    part.touch()
    store.get("a", {"n": 1}, dataset)
    assert not part.exists()


def test_a_full_disk_leaves_nothing(store, monkeypatch):
    def full(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "to_netcdf", full)
        with pytest.raises(OSError, match="full"):
            store.get("a", {"n": 1}, dataset)
    assert not [path for path in store.root.iterdir() if path.is_file()]
    store.get("a", {"n": 1}, dataset)


def _get(root, kill):
    def compute():
        with open(root / "computed", "a") as file:
            file.write("x")
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3)
        return dataset()

    Store(root / "store").get("a", {"n": 1}, compute)


def _run(*jobs):
    processes = [multiprocessing.get_context("fork").Process(target=_get, args=job) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    return [process.exitcode for process in processes]


def test_two_that_want_the_same_compute_it_once(tmp_path):
    assert _run((tmp_path, False), (tmp_path, False), (tmp_path, False)) == [0, 0, 0]
    assert (tmp_path / "computed").read_text() == "x"


def test_a_killed_computation_is_done_again(tmp_path):
    assert _run((tmp_path, True)) == [-signal.SIGKILL]
    assert _run((tmp_path, False)) == [0]
    assert (tmp_path / "computed").read_text() == "xx"


def test_a_store_that_is_only_read(tmp_path):
    small = experiments.boston_housing(runs=1, t0=1, iterations=1, grid=2, hidden=1)
    with only_stored(tmp_path), pytest.raises(NotStored):
        results(small)
    kept = results(small, store=Store(tmp_path), progress=False, jobs=1)
    with only_stored(tmp_path):
        xr.testing.assert_identical(results(small), kept)


def test_the_use_of_a_result_is_noted(store, tmp_path, monkeypatch):
    record = tmp_path / "record"
    monkeypatch.setenv("PARAMETER_ORDERING_RECORD", str(record))
    for _ in range(2):
        store.get("a", {"n": 1}, dataset)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert lines == [{"result": store.path("a", {"n": 1}).name}] * 2


def test_where_results_are_kept(tmp_path, monkeypatch):
    (tmp_path / "chapters").mkdir()
    monkeypatch.delenv("PARAMETER_ORDERING_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path / "chapters")
    assert Store().root == tmp_path / "chapters/_build/results"
    (tmp_path / "_toc.yml").touch()
    assert Store().root == tmp_path / "_build/results"
    monkeypatch.setenv("PARAMETER_ORDERING_RESULTS", "/elsewhere")
    assert Store().root == Path("/elsewhere")


STUB = '''
from dataclasses import dataclass
import numpy
import xarray as xr

@dataclass(frozen=True)
class Stub:
    """As much of an experiment as the store needs."""

    n: int = 1
    name = "stub"

    def data(self):
        return self

    @property
    def checksum(self):
        return "abc"

    def run(self, progress=False, scale=1):
        return xr.Dataset({"y": self.n * scale})

    def curve(self):
        return xr.Dataset({"y": -self.n})
'''


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """A module with an experiment, older than this process."""
    path = tmp_path / "stubs.py"
    path.write_text(STUB)
    os.utime(path, (0, 0))
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("stubs")
    del sys.modules["stubs"]


def test_results_of_an_experiment(store, stubs):
    assert results(stubs.Stub(), store=store, progress=True)["y"] == 1
    assert results(stubs.Stub(), store=store, scale=5)["y"] == 1  # found: how does not count
    assert results(stubs.Stub(2), store=store)["y"] == 2
    assert results(stubs.Stub(), "curve", store=store)["y"] == -1
    names = sorted(path.name.rpartition("-")[0] for path in store.root.glob("*.nc"))
    assert names == ["stub", "stub", "stub-curve"]
    note = json.loads(next(store.root.glob("stub-c*.json")).read_text())
    assert note["inputs"]["method"] == "Stub.curve"
    assert note["inputs"]["settings"] == {"n": 1}
    assert note["inputs"]["data"] == "abc"
    assert note["inputs"]["sources"].keys() == {"stubs"}
    assert note["inputs"]["packages"].keys() == {"python", "numpy", "xarray"}


def test_an_edited_source_is_not_run_as_what_it_was(store, stubs):
    os.utime(stubs.__file__, (time.time() + 1, time.time() + 1))
    with pytest.raises(RuntimeError, match=r"stubs was edited after this process began.*Restart"):
        results(stubs.Stub(), store=store)
    assert not list(store.root.glob("*.nc"))


def test_a_source_edited_during_the_run_spoils_its_result(store, stubs, monkeypatch):
    def run(self):
        os.utime(stubs.__file__, (time.time() + 1, time.time() + 1))
        return dataset()

    monkeypatch.setattr(stubs.Stub, "run", run)
    with pytest.raises(RuntimeError, match="stubs was edited"):
        results(stubs.Stub(), store=store)
    assert not list(store.root.glob("*.nc"))


def test_a_source_edited_during_the_run_spoils_its_shards(store, stubs, monkeypatch):
    def run(self, shards):
        shards[range(1)] = dataset()
        os.utime(stubs.__file__, (time.time() + 1, time.time() + 1))
        shards[range(1, 2)] = dataset()

    monkeypatch.setattr(stubs.Stub, "run", run)
    with pytest.raises(RuntimeError, match="stubs was edited"):
        results(stubs.Stub(), store=store)
    assert len(list(store.root.glob("shards/*.nc"))) == 1
