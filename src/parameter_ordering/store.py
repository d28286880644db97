"""Results kept on disk, under a key that names everything they depend on.

A result is an `xarray.Dataset`, written as NetCDF to ``<name>-<key>.nc``. Beside it,
``<name>-<key>.json`` says what the key stands for, where the result came about, how long it took,
and the checksum that every later reading is held against. ``key`` is a hash of the inputs:
settings, sources, versions, data. So a changed input is a new file, and an old one is never taken
for it.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xarray as xr

from parameter_ordering.files import lock, replacing, sha256, sweep, write_text
from parameter_ordering.origin import origin
from parameter_ordering.sources import Imports, dependencies

_STARTED = time.time()


class Store:
    """Datasets on disk, each computed once.

    Args:
        root: the folder; by default ``$PARAMETER_ORDERING_RESULTS``, which a build of the book
            sets, or else ``_build/results`` of the checkout that holds the current folder.

    Example:
        >>> import tempfile
        >>> import xarray as xr
        >>> store = Store(tempfile.mkdtemp())
        >>> store.get("square", {"of": 3}, lambda: xr.Dataset({"y": 3**2}))["y"].item()
        9
        >>> store.get("square", {"of": 3}, lambda: 1 / 0)["y"].item()  # read, not computed
        9
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root or os.environ.get("PARAMETER_ORDERING_RESULTS") or _default_root())

    def path(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """Where the dataset of these inputs is or will be."""
        return self.root / f"{name}-{key(inputs)}.nc"

    def get(
        self, name: str, inputs: Mapping[str, Any], compute: Callable[[], xr.Dataset]
    ) -> xr.Dataset:
        """The dataset of these inputs, computed if it is not there or its file is damaged.

        Processes that want the same dataset at the same time compute it once. What is returned
        has been through the file, so it is the same now and in any later process.

        Args:
            name: begins the file's name.
            inputs: all that the dataset depends on; anything that JSON can hold.
            compute: gives the dataset.
        """
        path = self.path(name, inputs)
        with lock(self.root / ".locks" / path.stem):
            if not _is_whole(path):
                sweep(self.root, f"{path.stem}.*")
                began = time.perf_counter()
                dataset = compute()
                _write(path, dataset, inputs, time.perf_counter() - began)
            _note_use(path)
            return xr.load_dataset(path, engine="h5netcdf")


def results(
    experiment: Any, method: str = "run", *, store: Store | None = None, **how: Any
) -> xr.Dataset:
    """An experiment's results: from the store, or computed and kept there.

    Args:
        experiment: a frozen dataclass of settings with a ``name`` and ``data()``.
        method: which of its methods gives the results.
        store: where they are kept.
        how: passed on to the method; it must not change the results (``progress``, ``jobs``).

    Raises:
        RuntimeError: if a source was edited after this process began, so that what would run is
            not what the key says.
    """
    code = f"import {type(experiment).__module__}"
    inputs = {
        "method": f"{type(experiment).__name__}.{method}",
        "settings": asdict(experiment),
        "data": experiment.data().checksum,
        **dependencies(code, docstrings=False),
    }

    def compute() -> xr.Dataset:
        _refuse_edited(code)
        dataset = getattr(experiment, method)(**how)
        _refuse_edited(code)
        return dataset

    name = experiment.name if method == "run" else f"{experiment.name}-{method}"
    return (store or Store()).get(name, inputs, compute)


def key(inputs: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for the inputs, whatever the order of their names."""
    return hashlib.sha256(_json(inputs).encode()).hexdigest()[:16]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=1)


def _default_root() -> Path:
    here = Path.cwd()
    books = (folder for folder in (here, *here.parents) if (folder / "_toc.yml").is_file())
    return next(books, here) / "_build" / "results"


def _is_whole(path: Path) -> bool:
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return note["sha256"] == sha256(path)
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


def _refuse_edited(code: str) -> None:
    imports = Imports()
    imports.follow_code(code)
    for name, path in imports.modules.items():
        if path.stat().st_mtime > _STARTED:
            raise RuntimeError(
                f"{name} was edited after this process began, so what would run is not what is "
                "on disk. Restart the kernel, then run again."
            )
