"""What a step of training costs against k, for parameters, units and tensors frozen in order.

A step is forward, backward and a fused Adam, 128 digits a minibatch. Orders are by C after some
updates; "tensors, input first" freezes layer by layer instead, which lets backward stop early.
Ratios are to the same step with nothing frozen, interleaved with it.
"""

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.freezing import freeze, unfreeze
from parameter_ordering.granularity import by_tensors, by_units, to_parameters
from parameter_ordering.order import frozen_mask
from parameter_ordering.paper.experiments.data import mnist
from parameter_ordering.skipping import skip_gradients

S = 128


def perceptron() -> nn.Module:
    """784-512-512-512-10."""
    return nn.Sequential(
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def cnn() -> nn.Module:
    """Two convolutions of 3 x 3 with 16 and 32 filters, pooling, 800-128-10."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def run(quick: bool = False) -> list[dict]:
    """Rows of one model, granularity and k: seconds a step, and the ratio to nothing frozen."""
    data = mnist()
    updates, rounds, steps = (2, 1, 1) if quick else (30, 7, 5)
    return [
        {"model": build.__name__} | row
        for build in (perceptron, cnn)
        for row in _curves(build(), data.x_train, data.y_train, updates, rounds, steps)
    ]


def _curves(
    model: nn.Module, x: Tensor, y: Tensor, updates: int, rounds: int, steps: int
) -> list[dict]:
    optimizer = Adam(model.named_parameters(), fused=True)
    covariance = GradientCovariance(model, samples="all")
    for t in range(updates):
        batch = slice(S * t % (len(x) - S), None)
        covariance.update(cross_entropy, x[batch][:S], y[batch][:S])
        optimizer.step()
    x, y = x[:S], y[:S]
    masks = dict(_masks(covariance.diagonal()))
    seconds = {config: [] for config in masks}
    for _ in range(rounds):
        for config, mask in masks.items():
            freeze(optimizer, mask)
            with skip_gradients(model.named_parameters(), mask):
                seconds[config].append(_seconds_per_step(model, optimizer, x, y, steps))
            unfreeze(optimizer)
    nothing = {granularity: seconds[granularity, 0] for granularity, _ in masks}
    p = sum(w.numel() for w in model.parameters())
    return [
        {
            "granularity": granularity,
            "k": k,
            "share of parameters": sum(int(m.sum()) for m in mask.values()) / p,
            "seconds": statistics.median(seconds[granularity, k]),
            "ratio to nothing frozen": statistics.median(
                some / none
                for some, none in zip(seconds[granularity, k], nothing[granularity], strict=True)
            ),
        }
        for (granularity, k), mask in masks.items()
    ]


def _masks(scores: Mapping[str, Tensor]):
    """Pairs of (granularity, k) and mask, k from nothing to all."""
    position = {name: torch.tensor(i) for i, name in enumerate(scores)}
    for granularity, own in (
        ("parameters", scores),
        ("units", by_units(scores)),
        ("tensors", by_tensors(scores)),
        ("tensors, input first", position),
    ):
        number = sum(s.numel() for s in own.values())
        for eighth in range(9):
            k = number * eighth // 8
            yield (granularity, k), to_parameters(frozen_mask(own, k), scores)


def _seconds_per_step(
    model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, steps: int
) -> float:
    for step in range(steps + 1):
        if step == 1:  # The first step after a freeze sets up its moments.
            start = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps
