"""Microseconds per model and step of the second phase, 25 runs of 39 variants, on each experiment.

- engine: as the book runs it, ``Experiment.run`` on shards of runs, one process a core;
- plain: one ``nn.Module`` and ``torch.optim.Adam`` at a time, its gradient masked and its frozen
  values put back;
- JAX: the program of :mod:`benchmarks.engine_jax`, as one program on all cores, and once more cut
  into the shards of the engine, one process a core;
- products: the matrix products of a step alone, by ``torch.bmm``, in the processes of the engine.

Variants are 19 values of k in each of two orders, and nothing frozen. All ways in turns; medians
over the rounds. A step is gradient, mask and Adam; the engine and JAX also fetch their minibatches
and look at the loss, the plain way is given its minibatch.
"""

import os
from collections.abc import Callable
from itertools import count
from statistics import median

import torch
from torch import nn

from benchmarks.engine_jax import train as train_by_jax
from benchmarks.turns import Program, seconds_a_step
from parameter_ordering import experiments
from parameter_ordering.paper.experiments.experiment import Experiment

RUNS, ORDERS, GRID = 25, ("covariance", "random"), 21
VARIANTS = 1 + len(ORDERS) * (GRID - 2)
PLAIN = 10  # models, one after the other; their time is per model
STEPS = {  # of a turn, about half a second
    "synthetic_1": 60,
    "mnist": 30,
    "boston_housing": 300,
    "synthetic_2": 600,
    "synthetic_3": 600,
}


def run(quick: bool = False) -> list[dict]:
    """A row for each experiment; ``quick`` shows that it runs, and measures little."""
    names = ("boston_housing", "synthetic_2") if quick else STEPS
    return [measure(name, runs=4, steps=5, rounds=1) if quick else measure(name) for name in names]


def measure(name: str, runs: int = RUNS, steps: int | None = None, rounds: int = 11) -> dict:
    steps = steps or STEPS[name]
    experiment = getattr(experiments, name)(
        runs=runs, orders=ORDERS, grid=GRID, t0=1, iterations=10**9
    )
    cores = os.cpu_count()
    shards = shards_of(experiment)
    of_shards = [(experiment, shard) for shard in shards]
    for_jax = [for_jax_of(experiment, len(shard), steps) for shard in shards]
    whole = [for_jax_of(experiment, runs, steps)]
    programs = {
        "engine": Program(engine, of_shards, jobs=cores),
        "plain": Program(plain, [experiment]),
        "JAX, one program": Program(train_by_jax, whole, threads=cores),
        "JAX, in shards": Program(train_by_jax, for_jax, jobs=cores),
        "products": Program(products, of_shards, jobs=cores),
    }
    models = runs * VARIANTS
    times = seconds_a_step(programs, steps, rounds)
    row = {"experiment": name, "p": experiment.p, "shard": experiment.shard}
    for program, seconds in times.items():
        row[program] = 1e6 * median(seconds) / (PLAIN if program == "plain" else models)
    return row | {
        "engine / one program": row["engine"] / row["JAX, one program"],
        "engine / in shards": row["engine"] / row["JAX, in shards"],
        "plain / engine": row["plain"] / row["engine"],
    }


def shards_of(experiment: Experiment) -> list[range]:
    """The runs of each shard of the engine."""
    runs, shard = experiment.runs, experiment.shard
    return [range(start, min(start + shard, runs)) for start in range(0, runs, shard)]


def engine(share: tuple[Experiment, range], tick: Callable[[], None]) -> None:
    experiment, runs = share
    experiment._shard(runs, lambda loss: tick())


def plain(experiment: Experiment, tick: Callable[[], None]) -> None:
    data, S = experiment.data(), experiment.S
    models = [experiment.build() for _ in range(PLAIN)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=experiment.lr) for model in models]
    masks = [torch.rand(w.shape) < 0.5 for w in models[0].parameters()]
    for t in count():
        start = t * S % (len(data.x_train) - S)
        x, y = data.x_train[start : start + S], data.y_train[start : start + S]
        for model, optimizer in zip(models, optimizers, strict=True):
            before = [w.detach().clone() for w in model.parameters()]
            optimizer.zero_grad()
            experiment.loss(model(x), y).mean().backward()
            for w, mask in zip(model.parameters(), masks, strict=True):
                w.grad.masked_fill_(mask, 0)
            optimizer.step()
            with torch.no_grad():
                for w, mask, kept in zip(model.parameters(), masks, before, strict=True):
                    w.copy_(torch.where(mask, kept, w))
        tick()


def products(share: tuple[Experiment, range], tick: Callable[[], None]) -> None:
    experiment, runs = share
    R, S = len(runs), experiment.S
    first, *others = [layer for layer in experiment.build() if isinstance(layer, nn.Linear)]
    x = torch.randn(R, S, first.in_features)
    w = torch.randn(R, VARIANTS * first.out_features, first.in_features)
    d = torch.randn(R, VARIANTS * first.out_features, S)
    deeper = [
        (
            torch.randn(R * VARIANTS, layer.out_features, layer.in_features),
            torch.randn(R * VARIANTS, layer.in_features, S),
            torch.randn(R * VARIANTS, layer.out_features, S),
        )
        for layer in others
    ]
    while True:
        torch.bmm(w, x.mT)
        torch.bmm(d, x)
        for weight, inputs, gradients in deeper:
            torch.bmm(weight, inputs)
            torch.bmm(gradients, inputs.mT)
            torch.bmm(weight.mT, gradients)
        tick()


def for_jax_of(experiment: Experiment, runs: int, steps: int) -> dict:
    layers = [layer for layer in experiment.build() if isinstance(layer, nn.Linear)]
    return {
        "layers": [layers[0].in_features, *[layer.out_features for layer in layers]],
        "loss": experiment.loss.__name__,
        "runs": runs,
        "variants": VARIANTS,
        "objects": len(experiment.data().y_train),
        "S": experiment.S,
        "lr": experiment.lr,
        "steps": steps,
    }
