"""Runs of worlds, the points of :mod:`.space`: few runs and few k of each."""

import json
from dataclasses import asdict
from typing import Literal

import numpy as np
import xarray as xr
from pydantic import ConfigDict, PositiveInt
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from parameter_ordering.paper import experiments
from parameter_ordering.paper.experiments import space
from parameter_ordering.paper.experiments.data import Data
from parameter_ordering.paper.experiments.experiment import Experiment
from parameter_ordering.paper.experiments.parallel import side_by_side
from parameter_ordering.paper.experiments.shard import FinishedShards


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Worlds:
    """The first worlds, on one data set.

    Attributes:
        data_set: one of ``space.DATA_SETS``.
        worlds: how many; more add to those that are there.
    """

    data_set: Literal["synthetic_1", "boston_housing", "synthetic_3", "mnist", "synthetic_2"]
    worlds: PositiveInt = 64

    @property
    def name(self) -> str:
        return f"worlds_{self.data_set}"

    def data(self) -> Data:
        """The data set at the settings of the book; a synthetic one differs from world to world."""
        return getattr(experiments, self.data_set)().data()

    def run(
        self,
        progress: bool = True,
        jobs: int = -1,
        backend: str = "loky",
        scheduler: str | None = None,
        shards: FinishedShards | None = None,
    ) -> xr.Dataset:
        """What :func:`outcome` gives for every world, along a dimension ``world``.

        Args:
            progress: whether to show a progress bar.
            jobs: how many worlds to run side by side, as in :meth:`Experiment.run`.
            backend: "loky" or "dask".
            scheduler: address of the Dask scheduler.
            shards: finished worlds, each by the range of its number alone.
        """
        shards = {} if shards is None else shards
        wanted = [range(number, number + 1) for number in range(self.worlds)]
        found = {each: shards.get(each) for each in wanted}
        missing = [each for each, outcome in found.items() if outcome is None]
        finished = side_by_side(
            self._world,
            missing,
            jobs=jobs,
            backend=backend,
            scheduler=scheduler,
            code=f"import {type(self).__module__}",
        )
        for each, result in tqdm(
            finished, self.name, len(missing), disable=not progress, leave=False
        ):
            found[each] = shards[each] = result
        provenance = json.dumps({"experiment": self.name, "settings": asdict(self)})
        whole = xr.concat(found.values(), "world", join="override", combine_attrs="drop")
        return whole.assign_attrs(provenance=provenance)

    def _world(self, numbers: range) -> xr.Dataset:
        number = numbers.start
        found = outcome(space.experiment(number, self.data_set))
        return found.expand_dims(world=[number])


def outcome(experiment: Experiment) -> xr.Dataset:
    """What is kept of a world: an experiment frozen at two stages.

    Returns:
        ``loss`` (stage, split, order, run, k), ``start_loss`` (split, run), as in
        :meth:`Experiment.run`, ``stage`` being "first" or "second" and k a share of p;
        ``correlation`` (stage, order, run, other): Spearman's, of the ranks of two runs, place by
        place as the paper's figures look at them;
        ``diverged``: whether a loss was not finite. All else is NaN then.
    """
    try:
        data = experiment.run(progress=False, jobs=1)
    except FloatingPointError:
        return _empty(experiment).assign(diverged=True)
    share = np.linspace(0, 1, experiment.grid)
    loss = data.loss.rename(t0="stage").assign_coords(stage=["first", "second"], k=share)
    ranks = data.ranks.transpose("t0", "order", "run", "parameter").values
    correlation = [[np.corrcoef(order) for order in stage] for stage in ranks]
    return _empty(experiment).assign(
        loss=loss.transpose("stage", "split", "order", "run", "k"),
        start_loss=data.start_loss,
        correlation=(("stage", "order", "run", "other"), np.array(correlation)),
        diverged=False,
    )


def _empty(experiment: Experiment) -> xr.Dataset:
    """Every outcome missing."""
    coordinates = {
        "stage": ["first", "second"],
        "split": ["train", "test"],
        "order": list(experiment.orders),
        "run": range(experiment.runs),
        "other": range(experiment.runs),
        "k": np.linspace(0, 1, experiment.grid),
    }
    dims = {
        "loss": ("stage", "split", "order", "run", "k"),
        "start_loss": ("split", "run"),
        "correlation": ("stage", "order", "run", "other"),
    }
    shapes = {name: [len(coordinates[dim]) for dim in each] for name, each in dims.items()}
    missing = {name: (dims[name], np.full(shape, np.nan)) for name, shape in shapes.items()}
    return xr.Dataset(missing, coordinates)
