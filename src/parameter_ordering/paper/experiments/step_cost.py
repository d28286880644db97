"""What a step of training costs when part of the parameters is frozen."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import ClassVar

import numpy as np
import torch
import xarray as xr
from torch.nn import functional as F
from tqdm import tqdm

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.freezing import freeze
from parameter_ordering.masked_adam import MaskedAdam
from parameter_ordering.order import frozen_mask
from parameter_ordering.paper import experiments
from parameter_ordering.paper.experiments.data import Data
from parameter_ordering.paper.experiments.shard import one_thread


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Times steps of the perceptron on MNIST, its parameters frozen in the paper's order.

    Attributes:
        runs: rounds; in each all k are timed in turn, so that they share whatever else the machine
            does.
        steps: how many steps are timed at once.
        S: minibatch size.
        compact: whether the moments of frozen parameters are given up, see :class:`MaskedAdam`.
    """

    name: ClassVar[str] = "mnist_cost"
    runs: int = 25
    steps: int = 50
    S: int = 32
    compact: bool = False

    def data(self) -> Data:
        """MNIST, as in the experiment."""
        return experiments.mnist().data()

    def run(self, progress: bool = True) -> xr.Dataset:
        """``seconds`` (run, k): the median time of a step, forward and backward pass included."""
        data = self.data()
        x, y = data.x_train[: self.S], data.y_train[: self.S]
        p = experiments.mnist().p
        k = [0, round(0.5 * p), round(0.9 * p), round(0.99 * p)]
        with one_thread():
            trainers = [self._training(x, y, each) for each in k]
            rounds = tqdm(range(self.runs), disable=not progress, desc=self.name)
            seconds = [[self._time(each) for each in trainers] for _ in rounds]
        provenance = json.dumps({"experiment": self.name, "settings": asdict(self)})
        return xr.Dataset(
            {"seconds": (("run", "k"), np.array(seconds))},
            {"run": range(self.runs), "k": k},
            {"provenance": provenance},
        )

    def _training(self, x: torch.Tensor, y: torch.Tensor, k: int) -> Iterator[None]:
        """Steps of a model with k parameters frozen, one at each ``next``."""
        torch.manual_seed(0)
        model = experiments.mnist().build()
        optimizer = MaskedAdam(model.named_parameters(), fused=True, compact=self.compact)
        C = GradientCovariance(model)
        for _ in range(2):
            C.update(F.cross_entropy, x, y)
            optimizer.step()
        if k > 0:
            freeze(optimizer, frozen_mask(C.diagonal(), k))
        while True:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            yield

    def _time(self, training: Iterator[None]) -> float:
        next(training)
        times = []
        for _ in range(self.steps):
            start = perf_counter()
            next(training)
            times.append(perf_counter() - start)
        return float(np.median(times))
