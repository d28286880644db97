"""Pieces of work done side by side, in processes of this machine or on a Dask cluster.

Which piece runs where changes no result: a worker has one thread for torch, and runs nothing that
is not, source for source and version for version, what the caller has.
"""

import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar

from joblib import Parallel, delayed, parallel_config

from parameter_ordering.paper.store.sources import dependencies, refuse_edited

BACKENDS = ("loky", "dask")
P = TypeVar("P")
R = TypeVar("R")


def side_by_side(
    work: Callable[[P], R],
    pieces: Sequence[P],
    *,
    jobs: int = -1,
    backend: str = "loky",
    scheduler: str | None = None,
    code: str = "",
) -> Iterator[tuple[P, R]]:
    """Each piece with what ``work`` gives for it, as soon as it is finished.

    Args:
        work: a function that can be pickled.
        pieces: its arguments.
        jobs: how many processes on this machine, -1 for as many as there are cores; a cluster uses
            all its workers.
        backend: "loky", processes of this machine; or "dask".
        scheduler: address of the Dask scheduler, as tcp://HOST:8786.
        code: imports what ``work`` runs; a Dask worker on which that differs is refused.

    A Dask worker that is lost costs the pieces that it held: others do them again.

    Raises:
        ValueError: backend and scheduler do not fit.
        ModuleNotFoundError: distributed is not installed.
        ConnectionError: no scheduler answers.
        RuntimeError: a worker runs other code.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    if backend == "dask" and not scheduler:
        raise ValueError("the backend dask needs a scheduler, the address of a running one")
    if backend != "dask" and scheduler:
        raise ValueError(f"a scheduler is for the backend dask, not {backend}")
    if backend == "dask" and find_spec("distributed") is None:
        raise ModuleNotFoundError(
            "the backend dask needs the package distributed: pip install distributed"
        )
    if not pieces:
        return iter(())
    if backend == "dask":
        return _on_cluster(work, pieces, scheduler, code)
    return _in_processes(work, pieces, jobs)


def _in_processes(work: Callable[[P], R], pieces: Sequence[P], jobs: int) -> Iterator[tuple[P, R]]:
    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1):
        parallel = Parallel(batch_size=1, return_as="generator_unordered")
    with warnings.catch_warnings():
        # Of no harm: an idle worker left, and joblib starts another.
        warnings.filterwarnings("ignore", message="A worker stopped")
        yield from parallel(delayed(_with_parent)(work, os.getpid(), piece) for piece in pieces)


def _with_parent(work: Callable[[P], R], parent: int, piece: P) -> tuple[P, R]:
    """Piece and result; the process ends if its parent was killed, for nobody wants them then."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1):
            if os.getppid() != parent:
                os._exit(1)

    if os.getpid() != parent:  # with one job joblib works in the process that asks
        threading.Thread(target=watch, daemon=True).start()
    try:
        return piece, work(piece)
    finally:
        done.set()


def _on_cluster(
    work: Callable[[P], R], pieces: Sequence[P], scheduler: str | None, code: str
) -> Iterator[tuple[P, R]]:
    # Imported by name, so that it is no dependency of results: where they were computed is not one.
    distributed = import_module("distributed")
    try:
        client = distributed.Client(scheduler, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    with client:
        checked = partial(_checked, work, code, dependencies(code))
        waiting = {client.submit(checked, piece, pure=False): piece for piece in pieces}
        for future in distributed.as_completed(list(waiting), loop=client.loop):
            # Forgotten once it is here, or else the loss of its worker would have it done again.
            yield waiting.pop(future), future.result()


def _checked(work: Callable[[P], R], code: str, here: dict[str, dict[str, str]], piece: P) -> R:
    """``work(piece)``, on a worker that has what the caller has."""
    refuse_edited(code)
    there = dependencies(code)
    other = [
        name if kind == "sources" else f"{name} {there[kind].get(name)}, not {here[kind].get(name)}"
        for kind in here
        for name in sorted(here[kind].keys() | there[kind].keys())
        if here[kind].get(name) != there[kind].get(name)
    ]
    if other:
        raise RuntimeError(
            f"the Dask worker on {platform.node()} runs other code: {', '.join(other)}; "
            "give it the environment and the checkout of this machine"
        )
    return work(piece)
