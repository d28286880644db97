"""Two processes for a test, with gloo between them; they are started once and used again."""

import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from functools import cache
from math import inf
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch
from torch import distributed

_PATIENCE = timedelta(minutes=1)  # of a process for the other


def run_on_two(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)`` returns on each of two processes, rank 0 first.

    ``function`` is one of a module of tests, by name; it, its arguments and its results can be
    pickled. The process group is that of ``torch.distributed``, random numbers have the same seed
    on both. An error of one is raised here, with its traceback there.
    """
    call = pickle.dumps((function, arguments))
    with TemporaryDirectory() as folder:
        store = (Path(folder) / "store").as_uri()
        processes = enumerate(_processes())
        runs = [process.submit(_run, rank, store, call) for rank, process in processes]
        errors = [error for run in runs if (error := run.exception())]
    if errors:  # the second misses the process of the first
        raise min(errors, key=lambda error: getattr(error, "time", inf))
    return [pickle.loads(run.result()) for run in runs]


@cache
def _processes() -> list[ProcessPoolExecutor]:
    # One for each rank: torch remembers what it has computed for a mesh, also for a rank before.
    options = {"initializer": torch.set_num_threads, "initargs": (1,)}
    return [ProcessPoolExecutor(1, get_context("spawn"), **options) for _ in range(2)]


def _run(rank: int, store: str, call: bytes) -> bytes:
    torch.manual_seed(0)
    distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=2, timeout=_PATIENCE
    )
    try:
        distributed.barrier()  # neither leaves before both are connected
        function, arguments = pickle.loads(call)
        return pickle.dumps(function(rank, *arguments))
    except Exception as error:
        error.time = monotonic()
        raise
    finally:
        distributed.destroy_process_group()
