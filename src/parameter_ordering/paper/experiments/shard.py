"""Some runs of an experiment, trained together as one ensemble."""

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from parameter_ordering.covariance import GradientCovariance
from parameter_ordering.ensemble import ENSEMBLE_DIMS, evaluate
from parameter_ordering.masked_adam import MaskedAdam
from parameter_ordering.moments import GradientMoments
from parameter_ordering.paper.experiments.data import Data
from parameter_ordering.paper.experiments.models import initialized, squared_error
from parameter_ordering.paper.experiments.protocol import (
    Diverged,
    Minibatches,
    Tick,
    build_all,
    exact_variance,
    freeze_and_train,
    kappa_of,
    seeds,
    train,
    uniform,
)
from parameter_ordering.paper.orders.catalogue import ORDERS, Ranks
from parameter_ordering.paper.orders.readings import READINGS, Readings
from parameter_ordering.paper.orders.training import Training

_ALONE = threading.Lock()


class Shard:
    """R models of an experiment with fresh weights, and the objects that they learn from.

    Args:
        experiment: an ``Experiment``: settings, data and models.
        runs: the numbers of the R runs; what happens in one does not depend on the others.

    Attributes:
        model: ensemble (R, 1, ...).
        minibatches: of each run.

    Raises:
        ValueError: for S above the number of training objects.
    """

    def __init__(self, experiment: Any, runs: Sequence[int]):
        keep_freed_memory()
        self.experiment, self.runs = experiment, runs
        sets = data_sets(experiment, runs)
        truth = [data.w for data in sets if data.w is not None]
        self._w_true = torch.stack(truth) if truth else None
        self._parts = [
            _stacked([(data.x_train, data.y_train) for data in sets], experiment.device),
            _stacked([(data.x_test, data.y_test) for data in sets], experiment.device),
        ]
        weight_runs = [0] * len(runs) if experiment.shared_weights else runs
        weight_seeds = seeds(experiment.seed, "weights", weight_runs)
        self.model = build_all(self._build, weight_seeds).to(experiment.device)
        self._run_seeds = seeds(experiment.seed, "minibatches", runs)
        self.minibatches = self._all_minibatches()

    def _all_minibatches(self) -> Minibatches:
        """The minibatches of the training, from the first."""
        experiment = self.experiment
        return Minibatches(*self._parts[0], experiment.S, self._run_seeds, experiment.minibatches)

    def evaluate(self, model: nn.Module | None = None) -> np.ndarray:
        """Loss (2.3) on the training part and the test part, (2, R, V)."""
        model = self.model if model is None else model
        losses = [evaluate(model, self.experiment.loss, x, y) for x, y in self._parts]
        return torch.stack(losses).cpu().numpy()

    def train(self, tick: Tick) -> xr.Dataset:
        """The results, see ``Experiment.run``; ``tick`` gets the mean loss of each iteration."""
        experiment, trained = self.experiment, self._training()
        start = {
            "w0": (("run", "parameter"), _flat(trained.start)),
            "start_variance": (("run", "parameter"), _flat(exact_variance(trained))),
            "start_loss": (("split", "run"), self.evaluate()[..., 0]),
        }
        found = []
        try:
            for t0 in experiment.stages or (experiment.t0,):
                train(trained, self.minibatches, t0 - self.minibatches.t, tick)
                found.append(self._freeze(trained, tick))
        except Diverged as e:
            raise FloatingPointError(self._where(e)) from None
        if experiment.stages:
            stages = xr.Variable("t0", list(experiment.stages))
            return xr.concat(found, stages).assign(start)
        return found[0].assign(start)

    def _freeze(self, trained: Training, tick: Tick) -> xr.Dataset:
        """What freezing now gives; the training is as before, and can go on."""
        experiment = self.experiment
        ranks = [ORDERS[order](trained) for order in experiment.orders]
        values = {
            "w": _flat(dict(self.model.named_parameters())),
            "variance": _flat(trained.covariance.diagonal()),
            "exact_variance": _flat(exact_variance(trained)),
        }
        at_t0 = self.evaluate()
        model, optimizer = copy.deepcopy((self.model, trained.optimizer))
        branches = replace(trained, model=model, optimizer=optimizer)
        if experiment.fresh_optimizer:
            optimizer.state.clear()
        orders = dict(zip(experiment.orders, ranks, strict=True))
        variants = [(orders[order], k) for order, k in self._variants()]
        minibatches = self.minibatches.copy()
        freeze_and_train(branches, variants, minibatches, experiment.iterations, tick)
        return self._results(ranks, values, self._losses(at_t0, self.evaluate(model)))

    def _variants(self) -> list[tuple[str, int]]:
        """Order and k of what is trained: with k = 0 all orders are one, with k = p nothing is."""
        orders, k = self.experiment.orders, self.experiment.k
        return [(orders[0], 0), *((order, each) for order in orders for each in k[1:-1])]

    def _losses(self, at_t0: np.ndarray, trained: np.ndarray) -> np.ndarray:
        """Loss (split, order, run, k) from those at t0 (2, R, 1) and of the variants (2, R, V)."""
        orders, interior = len(self.experiment.orders), self.experiment.grid - 2
        ours = trained[..., 1:].reshape(*trained.shape[:2], orders, interior).swapaxes(1, 2)
        ends = [np.repeat(each[:, None], orders, 1) for each in (trained[..., :1], at_t0)]
        return np.concatenate([ends[0], ours, ends[1]], -1)

    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh one for the models."""
        parameters, lr = self.model.named_parameters(), self.experiment.lr
        if self.experiment.optimizer == "adam":
            return MaskedAdam(parameters, lr=lr, fused=True, finite_gradients=True)
        return torch.optim.SGD(parameters, lr=lr, momentum=self.experiment.momentum, fused=True)

    def _build(self) -> nn.Module:
        return initialized(self.experiment.build(), self.experiment.initial_weights)

    def _training(self) -> Training:
        """The models before their training, with what watches it."""
        experiment, model, runs = self.experiment, self.model, self.runs
        start = {name: w.detach().clone() for name, w in model.named_parameters()}
        kappa = kappa_of(experiment.kappa)
        initial = uniform(start, seeds(experiment.seed, "C_0", runs))
        needs = set(experiment.orders)
        reads = not needs.isdisjoint(READINGS)
        of_first = partial(GradientCovariance, model, ensemble_dims=ENSEMBLE_DIMS)
        of_all = partial(of_first, samples="all")
        covariance = of_first(kappa=kappa, initial=initial)
        follows_all = reads or "all_samples" in needs
        all_samples = of_all(kappa=kappa, initial=initial) if follows_all else None
        return Training(
            model=model,
            optimizer=self.optimizer(),
            start=start,
            covariance=covariance,
            all_samples=all_samples,
            exact=of_all(kappa=1.0),
            moments=GradientMoments(model),
            x=self.minibatches.x[:, None],
            y=self.minibatches.y[:, None],
            loss=experiment.loss,
            gaussian=experiment.loss is squared_error,
            replay=self._all_minibatches,
            w_true=None if self._w_true is None else self._w_true.to(experiment.device),
            tie_seeds=seeds(experiment.seed, "ties", runs),
            own_seeds=seeds(experiment.seed, "own order", runs),
            common_seed=seeds(experiment.seed, "common order", [0])[0],
            readings=Readings(covariance, all_samples) if reads and all_samples else None,
        )

    def _where(self, diverged: Diverged) -> str:
        experiment = self.experiment
        where = f"run {self.runs[diverged.run]}"
        if diverged.t > self.minibatches.t:  # branches draw minibatches of their own
            order, k = self._variants()[diverged.variant]
            where += f", order {order}, k = {k}" if k else ", nothing frozen"
        return (
            f"{experiment.name}, {where}: the loss is {diverged.loss} at iteration {diverged.t}; "
            f"take a smaller lr than {experiment.lr}"
        )

    def _results(
        self, ranks: list[Ranks], by_parameter: dict[str, np.ndarray], loss: np.ndarray
    ) -> xr.Dataset:
        experiment, runs, k = self.experiment, self.runs, self.experiment.k
        variables: dict[str, Any] = {
            "loss": (("split", "order", "run", "k"), loss),
            "ranks": (
                ("order", "run", "parameter"),
                np.stack([_flat(each).astype(np.int32) for each in ranks]),
            ),
            **{name: (("run", "parameter"), values) for name, values in by_parameter.items()},
        }
        if self._w_true is not None:
            own = (("run", "feature"), self._w_true.numpy())
            variables["w_true"] = own if experiment.own_data else ("feature", own[1][0])
        coordinates = {
            "split": ["train", "test"],
            "order": list(experiment.orders),
            "run": list(runs),
            "k": k,
            **_layout(experiment.build()),
        }
        return xr.Dataset(variables, coordinates)


class FinishedShards(Protocol):
    """Where finished shards are kept, by their runs: a dict, or what keeps them for longer."""

    def get(self, runs: range, /) -> xr.Dataset | None: ...

    def __setitem__(self, runs: range, dataset: xr.Dataset, /) -> None: ...


def data_sets(experiment: Any, runs: Sequence[int]) -> list[Data]:
    """The data set that all runs share, or one for each."""
    seed = experiment.data_seed
    own = [seed + run for run in runs] if experiment.own_data else [seed]
    sets = [experiment.replace(data_seed=each).data() for each in own]
    for data in sets:
        if len(data.x_train) < experiment.S:
            raise ValueError(f"S = {experiment.S}: there are {len(data.x_train)} training objects")
    return sets


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: shards run side by side, and results do not depend on how many cores.

    And one at a time in a process, as torch's seed and number of threads are the process's.
    """
    with _ALONE:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Have malloc keep what a step frees for the next: each page given back costs a fault.

    glibc keeps as much as twice the largest block ever freed, not counting those above 32 MiB.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _stacked(objects: Sequence[tuple[Tensor, Tensor]], device: str) -> tuple[Tensor, Tensor]:
    """x (sets, m, n) and y (sets, m) from those of each set."""
    x, y = zip(*objects, strict=True)
    return torch.stack(x).to(device), torch.stack(y).to(device)


def _layout(model: nn.Module) -> dict:
    """Coordinates of the p parameters: the tensor of each, and its place there, in row order."""
    tensors = {name: w.numel() for name, w in model.named_parameters()}
    names = np.repeat(list(tensors), list(tensors.values()))
    places = np.concatenate([np.arange(size) for size in tensors.values()])
    return {"tensor": ("parameter", names), "place": ("parameter", places)}


def _flat(tensors: Mapping[str, Tensor]) -> np.ndarray:
    """Tensors (R, 1, ...) by name as one array (R, p), in the order of ``named_parameters``."""
    return torch.cat([t.detach().flatten(1) for t in tensors.values()], 1).cpu().numpy()
