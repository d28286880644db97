"""Results kept on disk, under a key that names everything they depend on.

A result is an `xarray.Dataset`, written as NetCDF to ``<name>-<key>.nc``. Beside it,
``<name>-<key>.json`` says what the key stands for, where the result came about, how long it took,
and the checksum that every later reading is held against. ``key`` is a hash of the inputs:
settings, sources, versions, data. So a changed input is a new file, and an old one is never taken
for it. Experiments that are trained in shards of runs have these kept as they are finished, in
``shards/``: what is interrupted goes on from there, and more runs need only what is new.
"""

import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xarray as xr

from parameter_ordering.paper.store.files import lock, replacing, sha256, sweep, write_text
from parameter_ordering.paper.store.origin import origin
from parameter_ordering.paper.store.sources import dependencies, refuse_edited


class NotStored(LookupError):
    """A result is not in a store that computes none."""


class Store:
    """Datasets on disk, each computed once.

    Args:
        root: the folder; by default ``$PARAMETER_ORDERING_RESULTS``, which a build of the book
            sets, or else ``_build/results`` of the checkout that holds the current folder.
        computes: whether what is not there is computed.

    Example:
        >>> import tempfile
        >>> import xarray as xr
        >>> store = Store(tempfile.mkdtemp())
        >>> store.get("square", {"of": 3}, lambda: xr.Dataset({"y": 3**2}))["y"].item()
        9
        >>> store.get("square", {"of": 3}, lambda: 1 / 0)["y"].item()  # read, not computed
        9
    """

    def __init__(self, root: str | Path | None = None, computes: bool = True) -> None:
        self.computes = computes
        self.root = Path(root or os.environ.get("PARAMETER_ORDERING_RESULTS") or _default_root())

    def path(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """Where the dataset of these inputs is or will be."""
        return self.root / f"{name}-{key(inputs)}.nc"

    def get(
        self,
        name: str,
        inputs: Mapping[str, Any],
        compute: Callable[[], xr.Dataset],
        seconds_before: Callable[[], float] = lambda: 0.0,
    ) -> xr.Dataset:
        """The dataset of these inputs, computed if it is not there or its file is damaged.

        Processes that want the same dataset at the same time compute it once. What is returned
        has been through the file, so it is the same now and in any later process.

        Args:
            name: begins the file's name.
            inputs: all that the dataset depends on; anything that JSON can hold.
            compute: gives the dataset.
            seconds_before: how long what ``compute`` found done had taken.

        Raises:
            NotStored: it is not there, and this store computes none.
        """
        path = self.path(name, inputs)
        with self.lock(path):
            if not _is_whole(path):
                if not self.computes:
                    raise NotStored(f"there is no result {path}")
                began = time.perf_counter()
                dataset = compute()
                _write(path, dataset, inputs, time.perf_counter() - began + seconds_before())
            _note_use(path)
            return xr.load_dataset(path, engine="h5netcdf")

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Be the only one to write a file of the store, with what killed writers left swept up."""
        with lock(self.root / ".locks" / path.stem):
            sweep(self.root, f"{path.stem}.*")
            yield


_default: ContextVar[Store | None] = ContextVar("default", default=None)


@contextmanager
def only_stored(root: Path) -> Iterator[None]:
    """Inside, :func:`results` reads from this folder, and nothing is computed."""
    token = _default.set(Store(root, computes=False))
    try:
        yield
    finally:
        _default.reset(token)


def results(
    experiment: Any, method: str = "run", *, store: Store | None = None, **how: Any
) -> xr.Dataset:
    """An experiment's results: from the store, or computed and kept there.

    Args:
        experiment: a frozen dataclass of settings with a ``name`` and ``data()``.
        method: which of its methods gives the results.
        store: where they are kept.
        how: passed on to the method; it must not change the results (``progress``, ``jobs``). A
            method with an argument ``shards`` is given where to keep them.

    Raises:
        RuntimeError: if a source was edited after this process began, so that what would run is
            not what the key says.
    """
    code = f"import {type(experiment).__module__}"
    inputs = {
        "method": f"{type(experiment).__name__}.{method}",
        "settings": asdict(experiment),
        "data": experiment.data().checksum,
        **dependencies(code),
    }

    store = store or _default.get() or Store()
    name = experiment.name if method == "run" else f"{experiment.name}-{method}"
    shards = _Shards(store, name, inputs, code)

    def compute() -> xr.Dataset:
        refuse_edited(code)
        run = getattr(experiment, method)
        kept = {"shards": shards} if "shards" in inspect.signature(run).parameters else {}
        dataset = run(**how, **kept)
        refuse_edited(code)
        return dataset

    return store.get(name, inputs, compute, shards.seconds_before)


class _Shards:
    """The shards of an experiment by their runs: their key leaves out how many runs there are.

    They are a :class:`~.shard.FinishedShards`. A build takes no note of them: what a chapter uses
    is the whole.
    """

    def __init__(self, store: Store, name: str, inputs: Mapping[str, Any], code: str) -> None:
        settings = {
            each: v for each, v in inputs["settings"].items() if each not in ("runs", "worlds")
        }
        self._store, self._name, self._code = Store(store.root / "shards"), name, code
        self._inputs = {**inputs, "settings": settings}
        self._last = time.perf_counter()
        self._earlier: list[float] = []

    def get(self, runs: range) -> xr.Dataset | None:
        path = self._store.path(self._name, self._inputs_of(runs))
        if not _is_whole(path):
            return None
        self._earlier.append(_note(path)["seconds"])
        return xr.load_dataset(path, engine="h5netcdf").drop_encoding()

    def __setitem__(self, runs: range, dataset: xr.Dataset) -> None:
        refuse_edited(self._code)
        inputs, now = self._inputs_of(runs), time.perf_counter()
        path = self._store.path(self._name, inputs)
        with self._store.lock(path):
            _write(path, dataset, inputs, now - self._last)
        self._last = now

    def seconds_before(self) -> float:
        """How long those that were found had taken."""
        return sum(self._earlier)

    def _inputs_of(self, runs: range) -> dict[str, Any]:
        return {**self._inputs, "runs": list(runs)}


def key(inputs: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for the inputs, whatever the order of their names."""
    return hashlib.sha256(_json(inputs).encode()).hexdigest()[:16]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=1)


def _default_root() -> Path:
    here = Path.cwd()
    books = (folder for folder in (here, *here.parents) if (folder / "_toc.yml").is_file())
    return next(books, here) / "_build" / "results"


def _note(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def _is_whole(path: Path) -> bool:
    try:
        return _note(path)["sha256"] == sha256(path)
    except (OSError, ValueError, KeyError):
        return False


def _write(path: Path, dataset: xr.Dataset, inputs: Mapping[str, Any], seconds: float) -> None:
    numeric = [name for name, array in dataset.data_vars.items() if array.dtype.kind in "biuf"]
    packed = {name: {"zlib": True} for name in numeric if dataset[name].ndim}
    with replacing(path) as part:
        dataset.to_netcdf(part, engine="h5netcdf", encoding=packed)
        note = {
            "inputs": inputs,
            "attributes": json.loads(dataset.attrs.get("provenance", "{}")),
            "origin": origin(),
            "seconds": round(seconds, 3),
            "bytes": part.stat().st_size,
            "sha256": sha256(part),
        }
        # The note goes first: a dataset without one, or with another's, counts as damaged.
        write_text(path.with_suffix(".json"), _json(note))


def _note_use(path: Path) -> None:
    """Tell the build of the book, if this runs in one, that the chapter has used this result."""
    record = os.environ.get("PARAMETER_ORDERING_RECORD")
    if record:
        with open(record, "a", encoding="utf-8") as file:
            file.write(json.dumps({"result": path.name}) + "\n")
