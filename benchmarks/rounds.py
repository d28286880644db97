"""Ways to do one thing, timed in rounds, so that they share whatever else the machine does."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved(ways: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each way; the order within a round is drawn anew each time."""
    torch.empty(2**25 - 2**16, dtype=torch.uint8)  # malloc keeps what is freed after a large block
    for way in ways.values():
        way()
    times, order, end = {name: [] for name in ways}, list(ways), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0]]) < 3:
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}
