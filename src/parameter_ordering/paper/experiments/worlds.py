"""Runs of worlds, the points of :mod:`.space`: few runs and few k of each."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import xarray as xr
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from parameter_ordering.paper import experiments
from parameter_ordering.paper.experiments import space
from parameter_ordering.paper.experiments.data import Data
from parameter_ordering.paper.experiments.experiment import Experiment
from parameter_ordering.paper.experiments.parallel import side_by_side
from parameter_ordering.paper.experiments.shard import FinishedShards

Length = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class Worlds:
    """The first worlds, on one data set.

    Attributes:
        data_set: one of ``space.DATA_SETS``.
        worlds: how many; more add to those that are there.
        length: the share of its iterations that is run, for a quick look.
    """

    data_set: space.DataSet
    worlds: PositiveInt = 64
    length: Length = 1.0

    @property
    def name(self) -> str:
        return f"worlds_{self.data_set}"

    def data(self) -> Data:
        """The data set at the settings of the book; a synthetic one differs from world to world."""
        return getattr(experiments, self.data_set)().data()

    def run(
        self, progress: bool = True, shards: FinishedShards | None = None, **how: Any
    ) -> xr.Dataset:
        """What :func:`outcome` gives for every world, along a dimension ``world``.

        Args:
            progress: whether to show a progress bar.
            shards: finished worlds, each by the range of its number alone.
            how: where worlds run side by side: ``jobs``, ``backend`` and ``scheduler`` of
                :func:`.parallel.side_by_side`.
        """
        shards = {} if shards is None else shards
        wanted = [range(number, number + 1) for number in range(self.worlds)]
        stored = {each: shards.get(each) for each in wanted}
        found = {each: outcome for each, outcome in stored.items() if outcome is not None}
        missing = [each for each in wanted if each not in found]
        code = f"import {type(self).__module__}"
        finished = side_by_side(self._world, missing, code=code, **how)
        for each, result in tqdm(
            finished, self.name, len(missing), disable=not progress, leave=False
        ):
            found[each] = shards[each] = result
        provenance = json.dumps({"experiment": self.name, "settings": asdict(self)})
        in_order = [found[each] for each in wanted]
        whole = xr.concat(in_order, "world", join="override", combine_attrs="drop")
        return whole.assign_attrs(provenance=provenance)

    def _world(self, numbers: range) -> xr.Dataset:
        number = numbers.start
        experiment = space.experiment(number, self.data_set, self.length)
        return outcome(experiment, progress=False, jobs=1).expand_dims(world=[number])


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True))
class World:
    """One world again, on seeds that no other run has.

    Attributes:
        data_set: one of ``space.DATA_SETS``.
        world: its number.
        runs: how many runs.
        length: the share of its iterations that is run, for a quick look.
    """

    data_set: space.DataSet
    world: NonNegativeInt
    runs: PositiveInt = 25
    length: Length = 1.0

    @property
    def name(self) -> str:
        return f"world_{self.data_set}"

    @property
    def experiment(self) -> Experiment:
        """The experiment of the world, with these runs and seeds."""
        seed = space.CONFIRMED + self.world
        again = {"runs": self.runs, "seed": seed, "data_seed": seed}
        return space.experiment(self.world, self.data_set, self.length, **again)

    def data(self) -> Data:
        """The data set of the world."""
        return self.experiment.data()

    def run(self, **how: Any) -> xr.Dataset:
        """What :func:`outcome` gives, along a dimension ``world`` of one."""
        provenance = json.dumps({"experiment": self.name, "settings": asdict(self)})
        found = outcome(self.experiment, **how).expand_dims(world=[self.world])
        return found.assign_attrs(provenance=provenance)


def outcome(experiment: Experiment, **how: Any) -> xr.Dataset:
    """What is kept of a world.

    Args:
        experiment: of the world.
        how: as in :meth:`Experiment.run`.

    Returns:
        ``loss`` (split, order, run, k), ``start_loss`` (split, run), as in
        :meth:`Experiment.run`, k being a share of p;
        ``correlation`` (order, run, other): Spearman's, of the ranks of two runs, place by place
        as the paper's figures look at them;
        ``diverged``: whether a loss was not finite. All else is NaN then.
    """
    try:
        data = experiment.run(**how)
    except FloatingPointError:
        return _empty(experiment).assign(diverged=True)
    share = np.linspace(0, 1, experiment.grid)
    ranks = data.ranks.transpose("order", "run", "parameter").values
    correlation = np.array([np.corrcoef(order) for order in ranks])
    return _empty(experiment).assign(
        loss=data.loss.assign_coords(k=share),
        start_loss=data.start_loss,
        correlation=(("order", "run", "other"), correlation),
        diverged=False,
    )


def _empty(experiment: Experiment) -> xr.Dataset:
    """Every outcome missing."""
    coordinates: dict[str, Any] = {
        "split": ["train", "test"],
        "order": list(experiment.orders),
        "run": range(experiment.runs),
        "other": range(experiment.runs),
        "k": np.linspace(0, 1, experiment.grid),
    }
    dims = {
        "loss": ("split", "order", "run", "k"),
        "start_loss": ("split", "run"),
        "correlation": ("order", "run", "other"),
    }
    shapes = {name: [len(coordinates[dim]) for dim in each] for name, each in dims.items()}
    missing = {name: (dims[name], np.full(shape, np.nan)) for name, shape in shapes.items()}
    return xr.Dataset(missing, coordinates)
