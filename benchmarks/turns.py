"""Programs measured in turns: on a machine that others use too, each is disturbed alike."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

# XLA knows the last of them only.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")


@dataclass(frozen=True)
class Program:
    """Work in one or more shares, each in a process of its own.

    Attributes:
        train: called as ``train(share, tick)``, it calls ``tick(steps)`` whenever it has taken that
            many steps, and goes on for ever.
        shares: what each process gets.
        jobs: how many processes work at a time.
        threads: of each process.
    """

    train: Callable[..., None]
    shares: Sequence
    jobs: int = 1
    threads: int = 1


def seconds_a_step(
    programs: Mapping[str, Program], steps: int, rounds: int
) -> dict[str, list[float]]:
    """Wall time of one step of all shares of each program, once a round.

    In a round each program has its turn: ``steps`` steps of every share. As in a pool, the next
    share starts where one is finished. A first turn warms up and does not count.
    """
    lanes = {
        name: [_Lane(program, share, steps) for share in program.shares]
        for name, program in programs.items()
    }
    everyone = list(chain.from_iterable(lanes.values()))
    times = {name: [] for name in programs}
    try:
        for lane in everyone:
            lane.connection.recv()
        for _ in range(rounds):
            for name, program in programs.items():
                times[name].append(_turn(lanes[name], program.jobs) / steps)
    finally:
        for lane in everyone:
            lane.process.kill()
            lane.process.join()
    return times


def limit_threads(threads: int) -> None:
    """How many threads each process that is started from now on has."""
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))


class _Lane:
    """A share in its process, and the line to it."""

    def __init__(self, program: Program, share: object, steps: int):
        limit_threads(program.threads)
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (program.train, share, steps, theirs)
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()


def _turn(lanes: Sequence[_Lane], jobs: int) -> float:
    waiting = [lane.connection for lane in lanes]
    running: list[Connection] = []
    start = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(waiting.pop(0))
            running[-1].send("go")
        for connection in wait(running):
            connection.recv()
            running.remove(connection)
    return time.perf_counter() - start


def _work(train: Callable[..., None], share: object, steps: int, connection: Connection) -> None:
    taken = 0

    def tick(more: int = 1) -> None:
        nonlocal taken
        taken += more
        if taken >= steps:
            taken = 0
            connection.send("done")
            connection.recv()

    train(share, tick)
