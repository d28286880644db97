"""Ways to do one thing, timed in rounds, so that they share whatever else the machine does."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

from parameter_ordering.paper.experiments.shard import keep_freed_memory


def interleaved(ways: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each way; the order within a round is drawn anew each time."""
    keep_freed_memory()
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
