"""Seconds of the whole second phase of each experiment, from the start of a process to its results.

What a user waits for: imports, data, models, all iterations after t0 = 1 and the losses at the end;
with JAX its compilation too, and no losses at the end. 25 runs of the variants of
:mod:`benchmarks.engine`, all cores: the engine with a process a core, JAX as one program with all
threads and in the shards of the engine. In turns; medians over the rounds.
"""

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from statistics import median

from benchmarks.engine import GRID, ORDERS, RUNS, STEPS, for_jax_of, shards_of
from benchmarks.engine_jax import train as train_by_jax
from benchmarks.turns import limit_threads
from parameter_ordering import experiments
from parameter_ordering.paper.experiments.experiment import Experiment


def run(quick: bool = False) -> list[dict]:
    """A row for each experiment; ``quick`` shows that it runs, and measures little."""
    if quick:
        return [measure("synthetic_2", runs=4, iterations=20, rounds=1)]
    return [measure(name) for name in STEPS]


def measure(name: str, rounds: int = 3, **settings: int) -> dict:
    given = {"runs": RUNS, "orders": ORDERS, "grid": GRID, "t0": 1} | settings
    experiment = getattr(experiments, name)(**given)
    cores, runs, steps = os.cpu_count() or 1, experiment.runs, experiment.iterations
    in_shards = [for_jax_of(experiment, len(shard), steps) for shard in shards_of(experiment)]
    whole = [for_jax_of(experiment, runs, steps)]
    ways: dict[str, tuple[Callable, Sequence, int]] = {
        "engine": (_engine, [experiment], 1),
        "JAX, one program": (_jax, whole, cores),
        "JAX, in shards": (_jax, in_shards, 1),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (work, shares, threads) in ways.items():
            seconds[way].append(_waited(work, shares, threads))
    medians = {way: median(each) for way, each in seconds.items()}
    row = {"experiment": name, "iterations": steps, **medians}
    best = min(medians["JAX, one program"], medians["JAX, in shards"])
    return row | {"engine / best of JAX": medians["engine"] / best}


def _waited(work: Callable, shares: Sequence, threads: int) -> float:
    """Seconds until all shares are done, each in a process of its own."""
    limit_threads(threads)
    start = time.perf_counter()
    processes = [get_context("spawn").Process(target=work, args=(share,)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{work.__name__} ended with {process.exitcode}")
    return time.perf_counter() - start


def _engine(experiment: Experiment) -> None:
    experiment.run(progress=False)


def _jax(share: dict) -> None:
    class Done(Exception):
        pass

    def stop(steps: int) -> None:
        raise Done

    try:
        train_by_jax(share, stop)
    except Done:
        return
