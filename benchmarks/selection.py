"""Selecting the k first of p parameters: seconds and memory of `frozen_mask` against a sort.

A sort and torch.kthvalue give a mask too. The sort breaks ties by position, a threshold freezes
all ties at once; only `frozen_mask` gives exactly k with ties at random.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from parameter_ordering.order import frozen_mask

TENSORS = 8
MASK = 1  # byte a parameter; the memory of small arrays is that of earlier ones, and says nothing
PROCESS = Path("/proc/self")
SCORES = {
    "distinct": lambda p: torch.rand(p),
    # As with dead pixels and units: half of all parameters have a variance of exactly zero.
    "half tied": lambda p: torch.rand(p).sub_(0.5).relu_(),
}


def run(quick: bool = False) -> list[dict]:
    """Rows of one method at one p: seconds, ns and extra bytes a parameter, ratio to the sort."""
    rows = []
    for p in (10**5, 10**6) if quick else (10**6, 10**7, 10**8):
        for kind, draw in SCORES.items():
            torch.manual_seed(0)
            scores = {str(i): part for i, part in enumerate(draw(p).chunk(TENSORS))}
            k = p // 4
            methods = {
                "frozen_mask": lambda scores=scores, k=k: frozen_mask(scores, k),
                "kthvalue": lambda scores=scores, k=k: _mask_by_kthvalue(scores, k),
                "sort": lambda scores=scores, k=k: _mask_by_sort(scores, k),
            }
            seconds = {name: [] for name in methods}
            memory = {}
            for _ in range(1 if quick else 3):
                for name, method in methods.items():
                    elapsed, memory[name] = _measure(method)
                    seconds[name].append(elapsed)
            for name in methods:
                median = statistics.median(seconds[name])
                rows.append(
                    {
                        "p": p,
                        "scores": kind,
                        "method": name,
                        "seconds": median,
                        "ns per parameter": median / p * 1e9,
                        "extra bytes per parameter": memory[name] / p - MASK
                        if p >= 10**7
                        else None,
                        "ratio to sort": median / statistics.median(seconds["sort"]),
                    }
                )
    return rows


def _mask_by_sort(scores: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    flat = torch.cat(list(scores.values()))
    mask = torch.zeros(flat.shape, dtype=torch.bool)
    mask[flat.sort(stable=True).indices[:k]] = True
    return dict(zip(scores, mask.split([len(s) for s in scores.values()]), strict=True))


def _mask_by_kthvalue(scores: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    threshold = torch.cat(list(scores.values())).kthvalue(k).values
    return {name: s <= threshold for name, s in scores.items()}


def _measure(method: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and the bytes by which the process grew at its peak; NaN where Linux is not."""
    gc.collect()
    before = _resident_bytes("VmRSS")
    if PROCESS.exists():
        (PROCESS / "clear_refs").write_text("5")
    start = time.perf_counter()
    result = method()
    seconds = time.perf_counter() - start
    peak = _resident_bytes("VmHWM")
    del result
    return seconds, peak - before


def _resident_bytes(which: str) -> float:
    if not PROCESS.exists():
        return math.nan
    lines = (PROCESS / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))
