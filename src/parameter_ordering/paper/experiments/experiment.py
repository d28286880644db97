"""The settings and results of an experiment (section 3)."""

import json
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
import xarray as xr
from joblib import effective_n_jobs
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, Strict, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from tqdm import tqdm

from parameter_ordering.ensemble import summed
from parameter_ordering.paper.experiments.data import Data
from parameter_ordering.paper.experiments.parallel import side_by_side
from parameter_ordering.paper.experiments.protocol import Tick, kappa_of
from parameter_ordering.paper.experiments.shard import FinishedShards, Shard, data_sets, one_thread
from parameter_ordering.paper.orders.catalogue import ORDERS

_T = TypeVar("_T")
Several = Annotated[tuple[_T, ...], Strict(False)]  # of a list too, as papermill gives it
CHECKED = ConfigDict(strict=True)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Experiment(ABC):
    """Settings of an experiment, checked; :meth:`run` executes it.

    Attributes:
        runs: how many independent runs; 25 in the paper.
        t0: iterations before the freeze.
        stages: where given, the iterations at which to freeze instead of t0, ascending, in one
            training: results then have a dimension ``t0``.
        iterations: iterations after the freeze.
        S: minibatch size.
        lr: learning rate.
        optimizer: "adam", as in the paper, or "sgd" with momentum.
        momentum: of "sgd".
        fresh_optimizer: whether the optimizer starts anew at the freeze, without its moments.
        minibatches: how they are drawn, "epochs" (shuffled), "replacement" or "fixed order".
        initial_weights: their distribution, "torch" (its default), "kaiming normal", "xavier
            uniform" or "normal" (of deviation 0.1).
        kappa: smoothing of (2.6), "1/t", "1/(t+1)" or a number for all t.
        grid: how many values of k, in equal steps from 0 to p.
        orders: which orders to compare, names out of ``ORDERS``.
        shared_weights: whether all runs start from the same weights.
        seed: of weights, minibatches and random orders.
        data_seed: of the data set or of its split.
        own_data: whether each run has a data set of its own: run r that of ``data_seed + r``.
        horizon: length of the learning curve that the stages of a training are read off.
        shard: how many runs are trained together, as one ensemble.
        device: where to train.
    """

    name: ClassVar[str]
    runs: PositiveInt = 25
    t0: PositiveInt = 500
    stages: Several[Annotated[PositiveInt, Strict(False)]] = ()
    iterations: NonNegativeInt = 1000
    S: Annotated[int, Field(ge=2)] = 32
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    fresh_optimizer: bool = False
    minibatches: Literal["epochs", "replacement", "fixed order"] = "epochs"
    initial_weights: Literal["torch", "kaiming normal", "xavier uniform", "normal"] = "torch"
    kappa: str = "1/t"
    grid: Annotated[int, Field(ge=2)] = 11
    orders: Several[str] = (
        "covariance",
        "random",
        "random_shared",
        "random_within_tensors",
        "covariance_descending",
    )
    shared_weights: bool = False
    seed: NonNegativeInt = 10
    data_seed: NonNegativeInt = 10
    own_data: bool = False
    horizon: PositiveInt = 5000
    shard: PositiveInt = 13
    device: str = "cpu"

    def __new__(cls, **settings):
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise TypeError(
                    f"{cls.__name__} has no setting {name!r}; it has {', '.join(known)}"
                )
        return super().__new__(cls)

    @field_validator("kappa")
    @classmethod
    def _smooths(cls, kappa: str) -> str:
        kappa_of(kappa)
        return kappa

    @field_validator("orders")
    @classmethod
    def _are_known(cls, orders: tuple[str, ...]) -> tuple[str, ...]:
        for order in orders:
            if order not in ORDERS:
                raise ValueError(f"unknown order {order!r}; known are {', '.join(ORDERS)}")
        if not orders or len(set(orders)) < len(orders):
            raise ValueError(f"orders must be distinct and at least one, got {orders}")
        return orders

    @field_validator("stages")
    @classmethod
    def _ascend(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if list(stages) != sorted(set(stages)):
            raise ValueError(f"stages must ascend, got {stages}")
        return stages

    @abstractmethod
    def data(self) -> Data:
        """The data set that ``data_seed`` gives."""

    @abstractmethod
    def build(self) -> nn.Module:
        """One model with fresh weights."""

    @staticmethod
    @abstractmethod
    def loss(output: Tensor, target: Tensor) -> Tensor:
        """The loss of each sample (2.3)."""

    @property
    def p(self) -> int:
        """Number of parameters of the model."""
        return sum(w.numel() for w in self.build().parameters())

    @property
    def k(self) -> list[int]:
        """The numbers of frozen parameters, ``grid`` of them, in equal steps from 0 to p."""
        return np.linspace(0, self.p, self.grid).round().astype(int).tolist()

    def replace(self, **settings) -> "Experiment":
        """The same experiment with other settings."""
        return replace(self, **settings)

    def run(
        self,
        progress: bool = True,
        jobs: int = -1,
        backend: str = "loky",
        scheduler: str | None = None,
        shards: FinishedShards | None = None,
    ) -> xr.Dataset:
        """Train, order, freeze and train on; every run, order and k.

        Args:
            progress: whether to show a progress bar with the mean loss and the time left.
            jobs: how many shards of runs to train side by side, in processes of their own; -1 for
                as many as there are cores.
            backend: "loky", processes of this machine; or "dask", the workers of a cluster.
            scheduler: address of the Dask scheduler.
            shards: finished shards by their runs. Those that it has are not trained again, and
                others are put in as soon as they are finished.

        Results depend on none of these: bit for bit on machines of one kind, and see
        ``parameter_ordering.paper.evidence.reference`` where they differ.

        Returns:
            ``loss`` (split, order, run, k): mean over objects after t0 + iterations (2.3);
            ``ranks`` (order, run, parameter): I at t0;
            ``variance`` (run, parameter): diag(C_t0) of (2.6);
            ``exact_variance`` and ``start_variance`` (run, parameter): of the gradients of all
            training objects at w_t0 and at w_0;
            ``w0`` and ``w`` (run, parameter): the weights at the start and at t0;
            ``w_true`` (feature), or (run, feature) with ``own_data``, where (3.1) drew it.

        Raises:
            ValueError: for S above the number of training objects.
            FloatingPointError: when a loss is no longer finite; run, order, k and iteration are
                named.
        """
        data_sets(self, [0])
        shards = {} if shards is None else shards
        starts = range(0, self.runs, self.shard)
        wanted = [range(start, min(start + self.shard, self.runs)) for start in starts]
        stored = {runs: shards.get(runs) for runs in wanted}
        results = {runs: found for runs, found in stored.items() if found is not None}
        missing = [runs for runs in wanted if runs not in results]
        alone = backend == "loky" and min(effective_n_jobs(jobs), len(missing)) <= 1
        stages = self.stages or (self.t0,)
        steps = stages[-1] + len(stages) * self.iterations
        done = (len(wanted) - len(missing)) * steps
        with tqdm(
            total=len(wanted) * steps, initial=done, disable=not progress, desc=self.name
        ) as bar:

            def tick(loss: float) -> None:
                bar.update()
                if bar.n % 50 == 0:
                    bar.set_postfix(loss=f"{loss:.4g}", refresh=False)

            finished: Iterator[tuple[range, xr.Dataset]]
            if alone:
                finished = ((runs, self._shard(runs, tick)) for runs in missing)
            else:
                finished = side_by_side(
                    self._shard,
                    missing,
                    jobs=jobs,
                    backend=backend,
                    scheduler=scheduler,
                    code=f"import {type(self).__module__}",
                )
            for runs, result in finished:
                results[runs] = shards[runs] = result
                if not alone:
                    bar.set_postfix(loss=f"{float(result.loss.mean()):.4g}", refresh=False)
                    bar.update(steps)
        whole = xr.concat([results[runs] for runs in wanted], "run", data_vars="minimal")
        return whole.assign_attrs(self._attributes())

    def learning_curve(self, progress: bool = True) -> xr.Dataset:
        """Loss (split, run, iteration) with nothing frozen; points lie closer at the start."""
        runs = range(self.runs)
        marks = np.unique(np.round(self.horizon * np.linspace(0, 1, 61) ** 2).astype(int)).tolist()
        steps = tqdm(np.diff(marks), disable=not progress, desc=f"{self.name} curve")
        with one_thread(), steps as bar:
            shard = Shard(self, runs)
            model, minibatches = shard.model, shard.minibatches
            optimizer = shard.optimizer()
            curves = [shard.evaluate()[..., 0]]
            for many in bar:
                for _ in range(many):
                    x, y = next(minibatches)
                    optimizer.zero_grad()
                    summed(self.loss)(model(x), y).backward()
                    optimizer.step()
                curves.append(shard.evaluate()[..., 0])
                bar.set_postfix(loss=f"{curves[-1][0].mean():.4g}")
        loss = np.stack(curves, -1)
        return xr.Dataset(
            {"loss": (("split", "run", "iteration"), loss)},
            {"split": ["train", "test"], "run": list(runs), "iteration": marks},
            self._attributes(),
        )

    def _attributes(self) -> dict[str, str]:
        data = self.data()
        provenance = {
            "experiment": self.name,
            "settings": asdict(self),
            "data": {"name": repr(data), "sha256": data.checksum},
            "versions": {name: version(name) for name in ("parameter-ordering", "torch", "numpy")}
            | {"python": platform.python_version()},
            "machine": f"{platform.system()} {platform.machine()}",
        }
        return {"provenance": json.dumps(provenance)}

    def _shard(self, runs: Sequence[int], tick: Tick = lambda loss: None) -> xr.Dataset:
        """The results of some runs, trained together on one thread."""
        with one_thread():
            return Shard(self, runs).train(tick)
